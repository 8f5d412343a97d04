"""What a file's name says about its content."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

__all__ = ["STREAMED", "SUFFIXES", "Compression", "DataFormat", "data_format"]

FormatName = Literal["json", "csv", "parquet", "arrow"]
Compression = Literal["", ".gz", ".zst"]

_TEXT_FORMATS: dict[str, FormatName] = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
_BINARY_FORMATS: dict[str, FormatName] = {".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}
_COMPRESSIONS: tuple[Compression, ...] = ("", ".gz", ".zst")
STREAMED = {"jsonl": ".jsonl", "csv": ".csv", "tsv": ".tsv"}  # what standard input can be

SUFFIXES = ".jsonl, .ndjson, .json (JSON lines), .csv, .tsv, each also with .gz or .zst, and .parquet, .arrow, .feather"


@dataclass(frozen=True, slots=True)
class DataFormat:
    """What a file's name says about its content. `suffix` is without the compression: ".jsonl", ".tsv" ..."""

    name: FormatName
    suffix: str
    compression: Compression = ""

    @property
    def is_text(self) -> bool:
        """Whether it is read line by line, so that it can be continued where lines were appended."""
        return self.name in ("json", "csv")


def data_format(path: PurePath) -> DataFormat | None:
    """The format that the file's name stands for, in any case of letters; None where it is not one that is read."""
    name = path.name.lower()
    for suffix, format_name in _BINARY_FORMATS.items():
        if name.endswith(suffix):
            return DataFormat(format_name, suffix)
    for suffix, format_name in _TEXT_FORMATS.items():
        for compression in _COMPRESSIONS:
            if name.endswith(suffix + compression):
                return DataFormat(format_name, suffix, compression)
    return None
