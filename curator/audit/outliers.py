"""Outliers: samples whose captured energy, norm or loss lies far from the other samples of their dataset.

Robust standard deviations from the dataset's median: of the captured energy below it, of the loss and of the norm's
logarithm (norms differ by factors) on both sides. What lies LIMIT or more out is found, farthest first.
"""

import numpy as np

from curator.audit.results import AuditResult, Outlier, rows_of
from curator.audit.robust import deviations
from curator.errors import UsageError
from curator.metadata.samples import live_rows
from curator.query import Answering

__all__ = ["DEFAULT_DEVIATION", "MEASURES", "outliers"]

DEFAULT_DEVIATION = 3.5  # Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993)
MEASURES = ("captured", "norm", "loss")


def outliers(
    answering: Answering, *, deviation: float | None = None, where: str | None = None, limit: int = 50
) -> AuditResult:
    """The samples that stick out of their dataset in one of the three measures, farthest out first."""
    deviation = DEFAULT_DEVIATION if deviation is None else deviation
    if not deviation > 0:
        raise UsageError(f"--deviation must be above 0, got {deviation:g}")
    datasets: dict[str, int] = {}
    ids, codes, rows = [], [], []
    for id_, dataset, *measured in live_rows(answering.session, answering.space.id, ["dataset", *MEASURES], where):
        ids.append(id_)
        codes.append(datasets.setdefault(dataset, len(datasets)))
        rows.append(measured)
    ids_N, codes_N = np.array(ids, np.int64), np.array(codes, np.int64)
    values_NM = np.array(rows, np.float64).reshape(-1, len(MEASURES))
    away_NM, typical_CM = np.zeros_like(values_NM), np.zeros((len(datasets), len(MEASURES)))
    for code in range(len(datasets)):
        of_dataset = codes_N == code
        typical_CM[code] = np.median(values_NM[of_dataset], axis=0)
        away_NM[of_dataset] = _away(values_NM[of_dataset])
    worst_N = np.abs(away_NM).argmax(axis=1) if len(ids) else codes_N
    far_N = np.abs(away_NM).max(axis=1, initial=0)
    found = np.flatnonzero(far_N >= deviation)
    order = found[np.lexsort((ids_N[found], -far_N[found]))][:limit]
    described = rows_of(answering, ids_N[order].tolist())
    items = []
    for at in order.tolist():
        measure = int(worst_N[at])
        typical = typical_CM[codes_N[at]]
        reasons = [
            _reason(MEASURES[m], values_NM[at, m], typical[m], away_NM[at, m])
            for m in sorted(range(len(MEASURES)), key=lambda m: -abs(away_NM[at, m]))
            if abs(away_NM[at, m]) >= deviation
        ]
        items.append(
            Outlier(
                **described[int(ids_N[at])],
                reason="; ".join(reasons),
                measure=MEASURES[measure],
                value=float(values_NM[at, measure]),
                typical=float(typical[measure]),
                deviation=float(away_NM[at, measure]),
            )
        )
    how = {
        "space": answering.space.fingerprint,
        "deviation": deviation,
        "num_samples": len(ids),
        "found": len(found),
        "where": where,
    }
    notes = [f"{len(items):,} of {len(found):,} outliers: see --limit"] if len(items) < len(found) else []
    return AuditResult("outliers", items, how, notes)


def _away(values_nM: np.ndarray) -> np.ndarray:
    """Deviations of each measure, 0 where that end is of no interest."""
    captured, norm, loss = values_nM.T
    smallest = np.finfo(np.float64).tiny
    return np.stack(
        [np.minimum(deviations(captured), 0), deviations(np.log(np.maximum(norm, smallest))), deviations(loss)], axis=1
    )


_WORDS = {
    ("captured", False): "the sketch sees little of it, so its values are rough: unlike what the space was fitted on",
    ("norm", False): "it would hardly change the model",
    ("norm", True): "it pulls the model harder than the others",
    ("loss", False): "the model knows it already: trivial, or seen in training",
    ("loss", True): "the model did not expect it: wrong, odd, or hard",
}


def _reason(measure: str, value: float, typical: float, away: float) -> str:
    shown = (f"{value:.1%}", f"{typical:.1%}") if measure == "captured" else (f"{value:.4g}", f"{typical:.4g}")
    name = "captured energy" if measure == "captured" else measure
    side = "above" if away > 0 else "below"
    return (
        f"{name} {shown[0]}, {abs(away):.1f} robust standard deviations {side} the dataset's median {shown[1]}: "
        f"{_WORDS[measure, away > 0]}"
    )
