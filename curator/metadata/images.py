"""Which images the store holds, and which of them live samples and saved queries need."""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.metadata.tables import Image, Sample, SavedQuery

__all__ = ["add_images", "drop_unneeded_images", "known_images", "needed_images"]

_FEW = 500


def add_images(session: Session, found: dict[str, int]) -> None:
    """Names images, by hash with their sizes, whose files are in place; the caller commits."""
    hashes = sorted(found)
    for start in range(0, len(hashes), _FEW):
        some = hashes[start : start + _FEW]
        present = set(session.scalars(sa.select(Image.sha256).where(Image.sha256.in_(some))))
        new = [{"sha256": sha256, "num_bytes": found[sha256]} for sha256 in some if sha256 not in present]
        if new:
            session.execute(sa.insert(Image), new)


def known_images(session: Session) -> list[tuple[str, int]]:
    """(hash, bytes) of every image that the store names, by hash."""
    rows = session.execute(sa.select(Image.sha256, Image.num_bytes).order_by(Image.sha256))
    return [(row.sha256, row.num_bytes) for row in rows]


def drop_unneeded_images(session: Session) -> None:
    """Forgets the images that no sample has any more and no saved query, and commits; their files are to be swept."""
    needed = needed_images(session)
    gone = [sha256 for sha256, _ in known_images(session) if sha256 not in needed]
    for start in range(0, len(gone), _FEW):
        session.execute(sa.delete(Image).where(Image.sha256.in_(gone[start : start + _FEW])))
    session.commit()


def needed_images(session: Session) -> set[str]:
    """The hashes of all images that samples and saved queries have."""
    needed: set[str] = set()
    of_samples = sa.select(Sample.images).where(Sample.images.is_not(None))
    for images in session.scalars(of_samples, execution_options={"yield_per": 10_000}):
        needed.update(images or ())
    for parts in session.scalars(sa.select(SavedQuery.parts)):
        needed.update(sha256 for part in parts for sample in part["samples"] for sha256 in sample.get("images", ()))
    return needed
