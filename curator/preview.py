"""What the model would read of data, and what of it would count: a first look, without the model's weights."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from curator.errors import UsageError
from curator.models import Encoder, OnLong, Positions, find_checkpoint, load_limits, load_tokenizer
from curator.sources import describe, read_rows, resolve, settle_fields, to_samples
from curator.types import BadRow, EncodedSample, Fields, Row, Sample

__all__ = ["MAX_LENGTH", "Preview", "PreviewedSample", "preview"]

MAX_LENGTH = 2048  # where the model's own is not shorter, or not known
_ROWS = 1_000  # that are looked at
_MOST_BAD = 5  # that are shown
_PORTION = 64


@dataclass(frozen=True)
class PreviewedSample:
    """One sample as the model reads it: its text in pieces, each counted or not."""

    source: str
    row: int
    key: str | None
    side: str | None  # of a preference pair: chosen or rejected
    label: str | None
    pieces: list[tuple[str, bool]]  # (text, whether its tokens count)
    num_tokens: int
    num_counted: int
    is_truncated: bool


@dataclass(frozen=True)
class Preview:
    """The first samples, and counts over the first rows."""

    reading: str  # "chat: conversations (messages)"
    samples: list[PreviewedSample]
    quarantined: list[BadRow]  # the first ones
    num_rows: int  # looked at
    num_samples: int
    num_quarantined: int
    num_truncated: int
    num_tokens: int
    num_counted: int
    max_length: int
    reasons: dict[str, int] = field(default_factory=dict)  # why rows would go to quarantine

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as `curator preview --json` prints them."""
        return asdict(self)


def preview(
    data: Sequence[str | Path],
    fields: Fields,
    *,
    model: str,
    revision: str | None = None,
    adapter: str | None = None,
    num: int = 3,
    positions: Positions = "response",
    max_length: int | None = None,
    on_long: OnLong = "truncate",
    chat_template: str | None = None,
) -> Preview:
    """Reads and encodes the first rows as an ingest would. Raises as it does where nothing in them is usable."""
    sources = resolve(data)
    fields = settle_fields(sources, fields)
    checkpoint = find_checkpoint(model, revision, adapter)
    context, vocab_size = load_limits(checkpoint.directory)
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    if checkpoint.adapter is not None:
        vocab_size = max(vocab_size, len(tokenizer))  # it may add tokens
    limit = min(context or MAX_LENGTH, MAX_LENGTH) if max_length is None else max_length
    encoder = Encoder(
        tokenizer,
        max_length=limit,
        vocab_size=vocab_size,
        positions=positions,
        on_long=on_long,
        chat_template=chat_template,
    )
    shown: list[PreviewedSample] = []
    bad: list[BadRow] = []
    encoded: list[EncodedSample] = []
    rows = list(itertools.islice((row for source in sources for row in read_rows(source)), _ROWS))
    for start in range(0, len(rows), _PORTION):
        samples: list[Sample] = []
        for row in rows[start : start + _PORTION]:
            found = to_samples(row, fields) if isinstance(row, Row) else row
            if isinstance(found, BadRow):
                bad.append(found)
            else:
                samples += found
        for sample, item in zip(samples, encoder.encode(samples), strict=True):
            if isinstance(item, str):
                bad.append(BadRow(sample.source, sample.row, item, sample.full_text[:200]))
                continue
            encoded.append(item)
            if len(shown) < num:
                shown.append(_shown(encoder, sample, item))
    reasons = [row.reason.split(":")[0] for row in bad]
    if not encoded:
        why = f"none of the first {len(rows):,} rows is usable: {bad[0].reason}" if bad else "it has no rows"
        raise UsageError(f"nothing to preview in {sources[0].name}: {why}")
    return Preview(
        reading=describe(fields),
        samples=shown,
        quarantined=sorted(bad, key=lambda one: one.row)[:_MOST_BAD],
        num_rows=len(rows),
        num_samples=len(encoded),
        num_quarantined=len(bad),
        num_truncated=sum(item.is_truncated for item in encoded),
        num_tokens=sum(item.num_tokens for item in encoded),
        num_counted=sum(item.num_counted for item in encoded),
        max_length=limit,
        reasons={reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
    )


def _shown(encoder: Encoder, sample: Sample, item: EncodedSample) -> PreviewedSample:
    texts = encoder.token_texts(item.input_ids.tolist())
    runs = itertools.groupby(zip(texts, item.counted.tolist(), strict=True), key=lambda token: token[1])
    pieces = [("".join(text for text, _ in run), is_counted) for is_counted, run in runs]
    counts = (item.num_tokens, item.num_counted, item.is_truncated)
    side = None if sample.pair is None else sample.pair[1]
    return PreviewedSample(sample.source, sample.row, sample.key, side, sample.label, pieces, *counts)
