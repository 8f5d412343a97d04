"""Ingest: rows of real files become segments of the store."""

from curator.ingest.report import IngestReport, OnProgress, Progress
from curator.ingest.run import IngestOptions, ingest
from curator.ingest.watching import Watching

__all__ = ["IngestOptions", "IngestReport", "OnProgress", "Progress", "Watching", "ingest"]
