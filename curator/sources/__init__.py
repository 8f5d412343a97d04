"""Training data on disk becomes rows, and rows become samples: files -> Row | BadRow -> Sample | BadRow."""

from curator.sources.count import count_rows
from curator.sources.fields import check_fields, to_sample
from curator.sources.identity import content_hash
from curator.sources.paths import resolve
from curator.sources.rows import read_rows

__all__ = ["check_fields", "content_hash", "count_rows", "read_rows", "resolve", "to_sample"]
