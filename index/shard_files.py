"""The files behind the vector index: a cache of byte strings that vouches for what it hands out.

A shard is two files, `<prefix><key>.faiss` and `<prefix><key>.json` with the first one's sha256 and size. The key is a
hash of everything the shard was made from, so a shard made from something else is another file and none is stale.
Both are written under another name, synced and renamed. A crash or a race between the two leaves a pair that does not
match, which reads as absent. FAISS loads most flipped bits in silence and crashes on others: so the very bytes that
were hashed are what the caller gets, and no file is ever mapped.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path

from index.stored import fsync_directory, write_durably

__all__ = ["ShardFiles"]

ABANDONED_SECONDS = 3600  # an unfinished file this old belongs to a process that died


class ShardFiles:
    """Shards in a directory, made on first write; prefix keeps those of several indexes in it apart."""

    def __init__(self, directory: Path, prefix: str) -> None:
        self.directory = directory
        self.prefix = prefix

    def key(self, recipe: Sequence[str]) -> str:
        """Return the name of what this recipe makes: equal exactly where every part is equal."""
        return hashlib.sha256(json.dumps(list(recipe)).encode()).hexdigest()[:32]

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.directory / f"{self.prefix}{key}.faiss", self.directory / f"{self.prefix}{key}.json"

    def read(self, key: str) -> bytes | None:
        """Return a shard's bytes, or None where they are missing or not what was written."""
        path, seal_path = self._paths(key)
        try:
            seal = json.loads(seal_path.read_bytes())
            if path.stat().st_size != seal["num_bytes"]:
                return None
            data = path.read_bytes()
            return data if hashlib.sha256(data).hexdigest() == seal["sha256"] else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None  # a cache: what cannot be read is built anew, and an unwritable directory fails at that

    def write(self, key: str, data: bytes) -> None:
        """Store a shard durably, replacing what is there. Raises OSError where the directory cannot be written."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path, seal_path = self._paths(key)
        sealed = self._replace(path, data)
        self._replace(seal_path, json.dumps({"sha256": sealed, "num_bytes": len(data)}).encode())
        fsync_directory(self.directory)

    def _replace(self, path: Path, data: bytes) -> str:
        unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            stored = write_durably(unfinished, data)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        return stored.sha256

    def prune(self, keep: Collection[str]) -> list[Path]:
        """Remove the files of shards whose keys are not kept, and abandoned unfinished ones; return what was removed.

        Files of other prefixes, and anything that is not a shard's, stay. A shard that another process still wants is
        only a cache entry lost: readers hold shards in memory.
        """
        kept = {path for key in keep for path in self._paths(key)}
        removed = []
        for path in sorted(self.directory.glob(f"{self.prefix}*")):
            if path in kept or path.suffix not in (".faiss", ".json", ".tmp"):
                continue
            try:
                if path.suffix == ".tmp" and time.time() - path.stat().st_mtime < ABANDONED_SECONDS:
                    continue
                path.unlink()
            except FileNotFoundError:
                continue  # another process was faster
            removed.append(path)
        return removed
