"""Audits: samples to look at, each with the reason in words, and in a form that can be acted on."""

from curator.audit.duplicates import duplicates
from curator.audit.mislabeled import AUDIT_METHODS, AuditMethod, MislabeledOptions, mislabeled
from curator.audit.outliers import outliers
from curator.audit.results import AuditResult, Duplicate, Finding, Outlier, Suspect

__all__ = [
    "AUDIT_METHODS",
    "AuditMethod",
    "AuditResult",
    "Duplicate",
    "Finding",
    "MislabeledOptions",
    "Outlier",
    "Suspect",
    "duplicates",
    "mislabeled",
    "outliers",
]
