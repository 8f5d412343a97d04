"""Duplicates: the same text more than once, and samples that mean nearly the same to the model.

Exact: equal text (prompt and response alike), whatever the dataset, key, label or metadata. Near: a cosine of the
sketches of at least the threshold with a sample that is kept (index/near.py). The sample with the lowest id is kept.
Without near ones 24 bytes a sample; for the complexity of these see index/near.py.
"""

import numpy as np

from curator.audit.results import AuditResult, Duplicate, rows_of
from curator.errors import UsageError
from curator.metadata.samples import live_rows
from curator.query import Answering
from curator.sources import content_hash
from curator.types import Image, Sample
from index.near import ALL_PAIRS, keepers

__all__ = ["DEFAULT_THRESHOLD", "duplicates"]

DEFAULT_THRESHOLD = 0.95


def duplicates(
    answering: Answering,
    *,
    threshold: float | None = None,
    is_exact_only: bool = False,
    where: str | None = None,
    limit: int = 50,
) -> AuditResult:
    """The samples that another one makes superfluous: exact ones first, then by cosine, highest first."""
    threshold = DEFAULT_THRESHOLD if threshold is None else threshold
    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold must be above 0 and at most 1, got {threshold:g}")
    ids, first = _equal_texts(answering, where)
    keeper, cosine = ids[first], np.ones(len(ids), np.float32)
    is_exact = keeper != ids
    kept = np.flatnonzero(~is_exact)
    if not is_exact_only and len(kept):
        near_keeper, near_cosine = keepers(answering.segments, ids[kept], threshold)
        of_text = np.zeros(len(ids), np.int64)
        of_text[kept] = np.arange(len(kept))
        at = of_text[first]
        keeper, cosine = near_keeper[at], near_cosine[at]
        is_exact &= keeper == ids[first]  # the first of equal texts may go itself, to a near one
    found = np.flatnonzero(keeper != ids)
    order = found[np.lexsort((ids[found], -cosine[found], ~is_exact[found]))][:limit]
    rows = rows_of(answering, list({*ids[order].tolist(), *keeper[order].tolist()}))
    items = []
    for place in order.tolist():
        kept_row = rows[int(keeper[place])]
        what = "the same text as" if is_exact[place] else f"a cosine of {cosine[place]:.4f} with"
        items.append(
            Duplicate(
                **rows[int(ids[place])],
                reason=f"{what} {kept_row['key']} of {kept_row['dataset']}",
                keeper=int(keeper[place]),
                keeper_key=kept_row["key"],
                is_exact=bool(is_exact[place]),
                cosine=float(cosine[place]),
            )
        )
    how = {
        "space": answering.space.fingerprint,
        "threshold": None if is_exact_only else threshold,
        "pairs": "none" if is_exact_only else "all" if len(kept) <= ALL_PAIRS else "of neighbouring cells",
        "num_samples": len(ids),
        "found": len(found),
        "exact": int(is_exact.sum()),
        "clusters": len(np.unique(keeper[found])),
        "where": where,
    }
    notes = []
    if len(items) < len(found):
        notes.append(f"{len(items):,} of {len(found):,} duplicates: see --limit")
    return AuditResult("duplicates", items, how, notes)


def _equal_texts(answering: Answering, where: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Ids ascending, and for each the place of the first sample with the same text."""
    ids: list[int] = []
    hashes = bytearray()
    names = ["text", "prompt", "response", "messages", "tools", "images"]
    found = live_rows(answering.session, answering.space.id, names, where)
    for id_, text, prompt, response, messages, tools, images in found:
        ids.append(id_)
        seen = tuple(Image(sha256) for sha256 in images or ())
        own = None if prompt is not None else text
        hashes += content_hash(Sample(own, prompt, response, messages, tools, images=seen))
    words = np.frombuffer(bytes(hashes), np.uint64).reshape(-1, 2)
    order = np.lexsort((np.arange(len(ids)), words[:, 1], words[:, 0]))
    ordered = words[order]
    is_new = np.ones(len(ids), bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(ids), np.int64)
    first[order] = order[np.flatnonzero(is_new)[np.cumsum(is_new) - 1]] if len(ids) else order
    return np.array(ids, np.int64), first
