"""Datasets of the Hugging Face hub by name: which of their files are a config's and a split's.

The files are read where they lie, in parts, without the datasets library: what the card (README.md) names, else what
the names of files and folders say, else the Parquet copy that the hub makes of most datasets.
"""

import re
from pathlib import PurePosixPath
from typing import Any

import yaml

from curator.errors import NotFoundError, UsageError
from curator.sources.formats import data_format
from curator.sources.saved_dataset import choose
from curator.sources.source import SourceOptions

__all__ = ["dataset_files"]

Splits = dict[str, list[str]]  # split -> files
_COPY = "refs/convert/parquet"
_WORDS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation",
          "dev": "validation", "eval": "test"}  # fmt: skip
_WORD = re.compile(rf"(?:^|[-_./ \d])({'|'.join(_WORDS)})(?=[-_./ \d]|$)", re.IGNORECASE)


def dataset_files(filesystem: Any, path: str, options: SourceOptions) -> list[str]:
    """The files of the chosen config and split of a dataset repository, such as datasets/openai/gsm8k@main.

    Raises UsageError where a choice is needed and not made, and NotFoundError where nothing readable is there.
    """
    path = path.rstrip("/")
    files = sorted(filesystem.find(path))
    readable = [file for file in files if data_format(PurePosixPath(file)) and PurePosixPath(file).name[0] != "."]
    configs, default = _of_card(filesystem, path)
    if not configs:
        configs = {"default": _by_name(path, readable)} if readable else {}
    if not configs and "@" not in path:
        configs = _of_copy(filesystem, path)
    if not configs:
        raise NotFoundError(f"hf://{path} holds no data files that can be read, and the hub has no Parquet copy of it")
    config = choose(f"hf://{path}", "config", options.config or default, list(configs))
    chosen = []
    for name in config:
        splits = configs[name]
        for split in choose(f"hf://{path} ({name})", "split", options.split, list(splits)):
            chosen += splits[split]
    if not chosen:
        raise NotFoundError(f"hf://{path} names files for config {config[0]} that are not there")
    return chosen


def _of_card(filesystem: Any, path: str) -> tuple[dict[str, Splits], str | None]:
    """The configs that the head of the dataset's card names, with patterns that are looked up, and the default one."""
    card = f"{path}/README.md"
    if not filesystem.exists(card):
        return {}, None
    match = re.match(r"---\s*\n(.*?)\n---", filesystem.cat_file(card).decode("utf-8", "replace"), re.DOTALL)
    try:
        head = yaml.safe_load(match.group(1)) if match else None
    except yaml.YAMLError as error:
        raise UsageError(f"hf://{card} has a head that is not YAML: name a file of the dataset instead") from error
    configs: dict[str, Splits] = {}
    default = None
    for config in (head or {}).get("configs") or []:
        if isinstance(config, dict) and config.get("data_files"):
            name = str(config.get("config_name", "default"))
            configs[name] = _looked_up(filesystem, path, config)
            default = name if config.get("default") or name == "default" else default
    return configs, default


def _looked_up(filesystem: Any, path: str, config: dict[str, Any]) -> Splits:
    given = config["data_files"]
    entries = given if isinstance(given, list) else [given]
    splits: Splits = {}
    for entry in entries:
        split, patterns = (entry.get("split", "train"), entry["path"]) if isinstance(entry, dict) else ("train", entry)
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            full = "/".join(filter(None, (path, config.get("data_dir"), pattern)))
            splits.setdefault(str(split), []).extend(sorted(filesystem.glob(full)))
    return splits


def _by_name(path: str, files: list[str]) -> Splits:
    splits: Splits = {}
    for file in files:
        words = _WORD.findall(file.removeprefix(path))
        splits.setdefault(_WORDS[words[-1].lower()] if words else "train", []).append(file)
    return splits


def _of_copy(filesystem: Any, path: str) -> dict[str, Splits]:
    """config/split/0000.parquet ..., on a branch of its own."""
    root = f"{path}@{_COPY}"
    configs: dict[str, Splits] = {}
    for file in sorted(filesystem.glob(f"{root}/*/*/*.parquet")):
        *_, config, split, _ = PurePosixPath(file).parts
        configs.setdefault(config, {}).setdefault(split, []).append(file)
    return configs
