"""Spaces and datasets of a store."""

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.errors import NotFoundError
from curator.metadata.tables import Dataset, Space
from curator.types import Fields

__all__ = ["dataset_named", "find_space", "known_fields", "space_for_recipe"]


def space_for_recipe(session: Session, recipe_hash: str) -> Space | None:
    """The newest space of a recipe: the same model, tokenizer and options."""
    return session.scalars(
        sa.select(Space).where(Space.recipe_hash == recipe_hash).order_by(Space.id.desc()).limit(1)
    ).first()


def find_space(session: Session, fingerprint: str | None = None) -> Space:
    """The space whose fingerprint starts so, or the newest.

    Raises NotFoundError when there is none or several, and names the space that a refit made of it.
    """
    query = sa.select(Space).order_by(Space.id.desc())
    if fingerprint is None:
        newest = session.scalars(query.limit(1)).first()
        if newest is None:
            raise NotFoundError("the store holds no space yet; ingest something first: curator ingest DATA --model M")
        return newest
    found = session.scalars(query.where(Space.fingerprint.startswith(fingerprint, autoescape=True))).all()
    if len(found) != 1:
        _refuse_replaced(session, fingerprint)
        known = ", ".join(value[:12] for value in session.scalars(sa.select(Space.fingerprint).order_by(Space.id)))
        problem = "no space" if not found else f"{len(found)} spaces"
        raise NotFoundError(f"{problem} with fingerprint {fingerprint!r}; the store holds {known or 'none'}")
    return found[0]


def _refuse_replaced(session: Session, fingerprint: str) -> None:
    for space in session.scalars(sa.select(Space)):
        for old in space.projection.get("replaces", ()):
            if fingerprint and old.startswith(fingerprint):
                raise NotFoundError(
                    f"space {old[:12]} is gone: a refit has replaced it by {space.fingerprint[:12]}; use that one"
                )


def dataset_named(session: Session, name: str) -> Dataset:
    """The dataset of a name, created when it is new."""
    dataset = session.scalars(sa.select(Dataset).where(Dataset.name == name)).first()
    if dataset is None:
        dataset = Dataset(name=name, next_row=0, created_at=datetime.now(UTC))
        session.add(dataset)
        session.flush()
    return dataset


def known_fields(session: Session) -> list[tuple[str, Fields]]:
    """(dataset, the columns of its newest source) of datasets whose columns are known, the newest dataset first."""
    rows = session.execute(sa.select(Dataset.name, Dataset.fields).order_by(Dataset.id.desc()))
    return [(name, Fields(**fields)) for name, fields in rows if fields]
