"""Geometry: arrays and int64 ids in, ids and scores out. Usable by itself; knows nothing of texts, models or SQL."""

import os

# Read when OpenMP starts, so before torch or faiss: threads that spin while waiting slow a shared machine 4 times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from index.device_scan import DeviceScan
from index.errors import FaissMissingError, StoredFileError
from index.factors import KeptErrors, QuantizedFactors, keep_errors, quantize, token_values
from index.faiss_index import FaissIndex
from index.fit import HiddenMoment, RangeFinder, fit_rotation
from index.projection import Projection
from index.scan import scan, top_k
from index.segment import Segment, SegmentArrays, write_segment

__all__ = [
    "DeviceScan",
    "FaissIndex",
    "FaissMissingError",
    "HiddenMoment",
    "KeptErrors",
    "Projection",
    "QuantizedFactors",
    "RangeFinder",
    "Segment",
    "SegmentArrays",
    "StoredFileError",
    "fit_rotation",
    "keep_errors",
    "quantize",
    "scan",
    "token_values",
    "top_k",
    "write_segment",
]
