"""Training data on disk becomes rows, and rows become samples: files -> Row | BadRow -> Sample | BadRow."""

from curator.sources.count import count_rows
from curator.sources.fields import to_sample, to_samples
from curator.sources.identity import content_hash
from curator.sources.paths import resolve
from curator.sources.preference import SIDES
from curator.sources.rows import read_rows
from curator.sources.shapes import check_fields, describe, is_named, settle_fields, shape_of

__all__ = [
    "SIDES",
    "check_fields",
    "content_hash",
    "count_rows",
    "describe",
    "is_named",
    "read_rows",
    "resolve",
    "settle_fields",
    "shape_of",
    "to_sample",
    "to_samples",
]
