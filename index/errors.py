"""What can go wrong in `index` beyond a caller's ValueError.

    Exception
    ├── StoredFileError      a file is missing, truncated, or not what it says it is
    └── FaissMissingError    the vector index was asked for and faiss is not installed

Arguments that cannot be right (shapes, dtypes, unsorted ids) raise ValueError, before anything is read or written.
"""

__all__ = ["FaissMissingError", "StoredFileError"]


class StoredFileError(Exception):
    """A stored file cannot be trusted: the message says what is wrong, which file, what was found, and what to do."""


class FaissMissingError(Exception):
    """faiss cannot be imported, so that no vector index can be built or searched (exact scans still work)."""

    def __init__(self) -> None:
        super().__init__(
            "the vector index needs faiss, which is not installed: pip install 'forvalue-curator[cpu]' "
            "(or [gpu] on Linux with CUDA; never both)"
        )
