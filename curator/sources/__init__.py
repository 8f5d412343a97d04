"""Training data become rows, and rows become samples: sources -> Row | BadRow -> Sample | BadRow."""

from curator.sources.bookmark import is_unchanged, seen
from curator.sources.count import count_rows
from curator.sources.fields import check_fields, to_sample
from curator.sources.identity import content_hash
from curator.sources.paths import resolve
from curator.sources.rows import read_rows
from curator.sources.source import Source, SourceOptions

__all__ = [
    "Source",
    "SourceOptions",
    "check_fields",
    "content_hash",
    "count_rows",
    "is_unchanged",
    "read_rows",
    "resolve",
    "seen",
    "to_sample",
]
