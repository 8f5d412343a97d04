"""Training data become rows, and rows become samples: sources -> Row | BadRow -> Sample | BadRow."""

from curator.sources.bookmark import is_unchanged, seen
from curator.sources.count import count_rows
from curator.sources.fields import to_sample, to_samples
from curator.sources.identity import content_hash
from curator.sources.paths import resolve
from curator.sources.preference import SIDES
from curator.sources.rows import read_rows
from curator.sources.shapes import check_fields, describe, is_named, settle_fields, shape_of
from curator.sources.source import Source, SourceOptions

__all__ = [
    "SIDES",
    "Source",
    "SourceOptions",
    "check_fields",
    "content_hash",
    "count_rows",
    "describe",
    "is_named",
    "is_unchanged",
    "read_rows",
    "resolve",
    "seen",
    "settle_fields",
    "shape_of",
    "to_sample",
    "to_samples",
]
