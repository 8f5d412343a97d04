"""The images of a store: every one once, as images/<first two digits>/<sha256>, whatever their samples came from.

A file is written when its sample is read, and made durable before the commit that names it. Leftovers of a killed job
are harmless and go with the next `compact`, as do images that no live sample and no saved query needs any more.
"""

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from curator.types import Image, Sample

__all__ = ["FOLDER", "ImageFiles"]

FOLDER = "images"


class ImageFiles:
    """The folder of a store's images."""

    def __init__(self, root: Path):
        self._folder = root / FOLDER
        self._temporary = root / "tmp"

    def path(self, sha256: str) -> Path:
        """Where the image of this hash lies, or would."""
        return self._folder / sha256[:2] / sha256

    def located(self, sample: Sample) -> Sample:
        """The sample, with its images to be read from here."""
        if not sample.images:
            return sample
        images = tuple(Image(image.sha256, path=str(self.path(image.sha256))) for image in sample.images)
        return replace(sample, images=images)

    def put(self, sample: Sample) -> Sample:
        """Writes the sample's images where they are not yet, and returns the sample without their bytes."""
        for image in sample.images:
            self._write(image)
        return self.located(sample)

    def _write(self, image: Image) -> None:
        path = self.path(image.sha256)
        if path.exists() and _hash(path) == image.sha256:  # not what a lost power supply left of it
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._temporary / f"{image.sha256}.{secrets.token_hex(4)}"
        from curator.sources.images import read_image  # deferred: what reads only the database needs no pyarrow

        temporary.write_bytes(read_image(image))
        os.replace(temporary, path)

    def settle(self, hashes: Iterable[str]) -> None:
        """Makes these images durable: on disk, and in their folders."""
        from index.stored import fsync_directory

        folders = {self._folder, self._folder.parent}
        for sha256 in hashes:
            path = self.path(sha256)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            folders.add(path.parent)
        for folder in folders:
            fsync_directory(folder)

    def sweep(self, known: set[str]) -> None:
        """Removes every image that is not among the known ones."""
        for path in self._all():
            if path.name not in known:
                path.unlink(missing_ok=True)

    def problems(self, known: Iterable[tuple[str, int]]) -> Iterator[str]:
        """What is wrong with the images of these hashes and sizes."""
        for sha256, num_bytes in known:
            path = self.path(sha256)
            if not path.is_file():
                yield f"images/{sha256[:2]}/{sha256}: missing"
            elif path.stat().st_size != num_bytes or _hash(path) != sha256:
                yield f"images/{sha256[:2]}/{sha256}: its bytes are not those that were stored"

    def _all(self) -> Iterator[Path]:
        if self._folder.is_dir():
            for folder in sorted(self._folder.iterdir()):
                yield from folder.iterdir()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
