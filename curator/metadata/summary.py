"""Counts for `curator status`: what the store holds, by space and dataset."""

import hashlib
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.metadata.drift import history_of, refit_advice
from curator.metadata.tables import Dataset, Quarantined, Sample, Segment, Space

__all__ = ["datasets_of", "quarantined_rows", "spaces_of"]


def spaces_of(session: Session) -> list[dict[str, Any]]:
    """Every space with its samples, tokens and bytes, and whether a refit is worth it."""
    return [
        {
            "fingerprint": space.fingerprint,
            "model": space.model,
            "revision": space.revision,
            "adapter": space.model_files.get("adapter", {}).get("name"),
            "positions": space.recipe["positions"],
            "max_length": space.recipe["max_length"],
            "dtype": space.recipe["dtype"],
            "chat_template": _short_hash(space.recipe.get("chat_template")),
            "projection": space.projection,
            "created_at": space.created_at.isoformat(),
            **_counts(session, Sample.space_id == space.id),
            **_segments(session, space.id),
            "refit": refit_advice(session, space),
        }
        for space in session.scalars(sa.select(Space).order_by(Space.id))
    ]


def _short_hash(template: str | None) -> str | None:
    """By what a template given in the place of the model's own is told from another."""
    return None if template is None else hashlib.sha256(template.encode()).hexdigest()[:12]


def _counts(session: Session, *conditions: sa.ColumnElement[bool]) -> dict[str, Any]:
    live = Sample.deleted_at.is_(None)
    row = session.execute(
        sa.select(
            sa.func.count().filter(live),
            sa.func.count().filter(sa.not_(live)),
            sa.func.sum(Sample.num_tokens).filter(live),
            sa.func.sum(Sample.num_counted).filter(live),
            sa.func.count().filter(sa.and_(live, Sample.is_truncated)),
            sa.func.avg(Sample.captured).filter(live),
            sa.func.avg(Sample.loss).filter(live),
        ).where(*conditions)
    ).one()
    names = ("samples", "deleted", "tokens", "counted_tokens", "truncated", "captured", "loss")
    return dict(zip(names, (value or 0 for value in row), strict=True))


def _segments(session: Session, space_id: int) -> dict[str, Any]:
    bytes_by_tier = {"sketches": 0, "factors": 0, "rare_tokens": 0}
    rows = session.scalars(sa.select(Segment).where(Segment.space_id == space_id)).all()
    for segment in rows:
        for file in segment.files:
            bytes_by_tier[file["name"].split(".")[0]] += file["num_bytes"]
    return {"segments": len(rows), "bytes": bytes_by_tier}


def datasets_of(session: Session) -> list[dict[str, Any]]:
    """Every dataset in every space it has samples or quarantined rows in, with its captured energy over time."""
    rows = session.execute(
        sa.select(Dataset, Space)
        .join(Space, sa.true())
        .where(
            sa.or_(
                sa.exists().where(Sample.dataset_id == Dataset.id, Sample.space_id == Space.id),
                sa.exists().where(Quarantined.dataset_id == Dataset.id, Quarantined.space_id == Space.id),
            )
        )
        .order_by(Dataset.name, Space.id)
    ).all()
    histories = {space.id: history_of(session, space.id) for _, space in rows}
    return [
        {
            "dataset": dataset.name,
            "space": space.fingerprint,
            **_counts(session, Sample.dataset_id == dataset.id, Sample.space_id == space.id),
            "quarantined": session.scalar(
                sa.select(sa.func.count(Quarantined.id)).where(
                    Quarantined.dataset_id == dataset.id, Quarantined.space_id == space.id
                )
            ),
            "history": histories[space.id].get(dataset.name, []),
        }
        for dataset, space in rows
    ]


def quarantined_rows(session: Session, dataset: str | None = None) -> list[dict[str, Any]]:
    """The quarantined rows, of one dataset or of all: source, row, reason, excerpt."""
    query = (
        sa.select(Dataset.name, Quarantined)
        .join(Dataset, Quarantined.dataset_id == Dataset.id)
        .order_by(Dataset.name, Quarantined.source, Quarantined.row)
    )
    if dataset is not None:
        query = query.where(Dataset.name == dataset)
    return [
        {"dataset": name, "source": bad.source, "row": bad.row, "reason": bad.reason, "excerpt": bad.excerpt}
        for name, bad in session.execute(query)
    ]
