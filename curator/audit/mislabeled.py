"""Mislabelled samples: those whose value for their own group is lowest.

With a clean reference, the value of a sample for the mean of its group's clean rows. Without one, its agreement with
the rest of its group: the mean value of the others of the group for it,

    v(i) = (<s_i, W S_g> - <s_i, W s_i>) / (n_g - 1),    S_g = sum of s_j over the group

at the sketch tier: s_i the sketch, W = I - P^T diag(w) P [D, D] of preconditioning, else I. Two or three streaming
passes; memory is one row a group, and W. Ranked by how many robust standard deviations a value lies below its group's
median: values of different groups differ in scale.

Besides the methods of a query there is one more, both of its cures at once: preconditioned-cosine divides every sample,
and what it is held against, by ||G||, and preconditions these unit gradients by their own Fisher matrix,

    W = delta (C + delta I)^-1,  C = mean of s_i s_i^T / ||G_i||^2 over the audited samples,  delta = damping tr(C) / D

A well-trained model has tiny gradients for what it knows and large ones for what it does not, so undivided values tell
how loud a sample is, and so does a Fisher matrix of undivided gradients. Figures: curator/DESIGN.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from curator.audit.groups import Groups, reference_queries
from curator.audit.results import AuditResult, Suspect, rows_of
from curator.audit.robust import deviations
from curator.errors import EmptyQueryError, UsageError
from curator.metadata.spaces import known_fields
from curator.query import Answering
from curator.types import Fields
from curator.value import Method
from index.projection import Projection
from index.scan import RowScale, row_factors, sketches_of

__all__ = ["AUDIT_METHODS", "AuditMethod", "MislabeledOptions", "mislabeled"]

AuditMethod = Literal["raw", "cosine", "preconditioned", "preconditioned-cosine"]
AUDIT_METHODS: tuple[AuditMethod, ...] = get_args(AuditMethod)


@dataclass(frozen=True)
class MislabeledOptions:
    """How to look."""

    by: str | None  # a metadata field; else the label
    method: AuditMethod
    damping: float
    where: str | None
    limit: int

    def __post_init__(self) -> None:
        if self.method not in AUDIT_METHODS:
            raise UsageError(f"method {self.method!r} is not known; use one of {', '.join(AUDIT_METHODS)}")
        if not 0 < self.damping < float("inf"):
            raise UsageError(f"damping must be above 0 and finite, got {self.damping:g}")

    @property
    def is_unit(self) -> bool:
        """Whether samples are divided by their norms."""
        return "cosine" in self.method

    @property
    def is_preconditioned(self) -> bool:
        """Whether what all samples agree on counts less."""
        return self.method.startswith("preconditioned")


def mislabeled(
    answering: Answering, reference: Sequence[str | Path], fields: Fields, options: MislabeledOptions
) -> AuditResult:
    """The samples that their group's clean reference, or without one the rest of their group, bears out least."""
    groups = Groups(answering, options.by, options.where)
    notes = [f"{groups.num_without:,} samples have no group and were not judged"] if groups.num_without else []
    if reference:
        found = _against_reference(answering, groups, reference, fields, options, notes)
    else:
        found = _against_each_other(answering, groups, options, notes)
    values_N, clean = found
    deviations_N, percentiles_N = np.empty(len(values_N)), np.empty(len(values_N))
    order = np.argsort(groups.codes, kind="stable")
    for of_group in np.split(order, np.cumsum(groups.sizes)[:-1]):
        deviations_N[of_group] = deviations(values_N[of_group])
        percentiles_N[of_group] = _percentiles(values_N[of_group])
    worst = np.lexsort((groups.ids, deviations_N))[: options.limit]
    rows = rows_of(answering, groups.ids[worst].tolist())
    sizes = groups.sizes
    items = []
    for at in worst.tolist():
        group, size = groups.names[groups.codes[at]], int(sizes[groups.codes[at]])
        value, percentile = float(values_N[at]), float(percentiles_N[at])
        against = f"{clean[group]:,} clean rows" if clean else f"the other {size - 1:,} samples"
        reason = (
            f"value {value:.4g} for {against} of its group {group!r}, {-deviations_N[at]:.1f} robust standard "
            f"deviations below the group's median: percentile {percentile:.1f} of {size:,}"
        )
        items.append(
            Suspect(
                **rows[int(groups.ids[at])],
                reason=reason,
                group=group,
                value=value,
                percentile=percentile,
            )
        )
    how = {
        "space": answering.space.fingerprint,
        "by": options.by,
        "method": options.method,
        "damping": options.damping if options.is_preconditioned else None,
        "reference": [str(path) for path in reference] or None,
        "groups": int((sizes > 0).sum()),
        "num_samples": len(groups.ids),
        "where": options.where,
    }
    return AuditResult("mislabeled", items, how, notes)


Found = tuple[np.ndarray, dict[str, int]]  # values [N] and the number of clean rows by group


def _against_reference(
    answering: Answering,
    groups: Groups,
    reference: Sequence[str | Path],
    fields: Fields,
    options: MislabeledOptions,
    notes: list[str],
) -> Found:
    known = [columns for _, columns in known_fields(answering.session)]
    queries = reference_queries(reference, fields, options.by, known)
    search: dict[int, np.ndarray] = {}
    clean: dict[str, int] = {}
    for code, name in enumerate(groups.names):
        if name in queries:
            try:
                method: Method = "preconditioned" if options.method == "preconditioned" else "raw"
                prepared, description = answering.prepare(queries[name], method, options.damping)
            except EmptyQueryError as error:
                notes.append(f"group {name!r} was not judged: {error}")
                continue
            search[code] = prepared.search / (prepared.norm if options.is_unit else 1.0)
            clean[name] = description["num_samples"]
    if not search:
        has, lacks = ", ".join(list(queries)[:5]), ", ".join(groups.names[:5])
        raise UsageError(f"the reference has no usable row of any of the samples' groups: it has {has}, they {lacks}")
    if missing := [name for name in groups.names if name not in clean]:
        notes.append(f"{len(missing):,} groups have no clean row and were not judged: {', '.join(missing[:5])}")
    groups.only(np.array(list(search)))
    search_GD = np.zeros((len(groups.names), answering.projection.width))
    for code, of_group in search.items():
        search_GD[code] = of_group
    if options.method == "preconditioned-cosine":
        search_GD = search_GD @ _unit_weights(answering, groups, options)
    return _values(answering, groups, search_GD, options), clean


def _against_each_other(answering: Answering, groups: Groups, options: MislabeledOptions, notes: list[str]) -> Found:
    alone = groups.sizes < 2
    if alone.any():
        notes.append(f"{int(alone.sum()):,} groups hold one sample and were not judged")
        groups.only(np.flatnonzero(~alone))
    if not len(groups.ids):
        raise UsageError("every group holds one sample: without a clean reference there is nothing to compare")
    sums_GD = np.zeros((len(groups.names), answering.projection.width))
    for places, sketches_nD in _scaled(answering, groups, options):
        np.add.at(sums_GD, groups.codes[places], sketches_nD)
    weights_DD = None
    if options.method == "preconditioned":
        weights_DD = _inside(answering.projection, options.damping)
    elif options.method == "preconditioned-cosine":
        weights_DD = _unit_weights(answering, groups, options)
    search_GD = sums_GD if weights_DD is None else sums_GD @ weights_DD
    values = _values(answering, groups, search_GD, options, is_own_out=True, weights_DD=weights_DD)
    return values / (groups.sizes[groups.codes] - 1), {}


def _inside(projection: Projection, damping: float) -> np.ndarray:
    """I - P^T diag(w) P, float64 [D, D]: preconditioning as sketches see it."""
    rotation = projection.rotation.double()
    taken = rotation.T @ (projection.damped_weights(damping).double().flatten()[:, None] * rotation)
    return np.eye(projection.width) - taken.cpu().numpy()


def _unit_weights(answering: Answering, groups: Groups, options: MislabeledOptions) -> np.ndarray:
    """delta (C + delta I)^-1, float64 [D, D], with C the second moment of the groups' sketches over their norms."""
    width = answering.projection.width
    moment_DD = np.zeros((width, width))
    for _, sketches_nD in _scaled(answering, groups, options):
        moment_DD += sketches_nD.T @ sketches_nD
    if not (trace := np.trace(moment_DD)) > 0:
        return np.eye(width)
    scaled = moment_DD * (width / trace / options.damping)  # C / delta
    weights: np.ndarray = np.linalg.inv(scaled + np.eye(width))
    return weights


def _scaled(answering: Answering, groups: Groups, options: MislabeledOptions) -> Any:
    """(places [n], sketches float64 [n, D]) as the method takes them."""
    row_scale: RowScale = "inverse_norm" if options.is_unit else "none"
    for places, sketches_nD, norms in sketches_of(answering.segments, groups.ids):
        yield places, sketches_nD.astype(np.float64) * row_factors(norms, row_scale)[:, None]


def _values(
    answering: Answering,
    groups: Groups,
    search_GD: np.ndarray,
    options: MislabeledOptions,
    *,
    is_own_out: bool = False,
    weights_DD: np.ndarray | None = None,
) -> np.ndarray:
    """Each sample's value for its own group's row; `is_own_out`: less what it adds to that row itself."""
    values_N = np.full(len(groups.ids), np.nan)
    for places, sketches_nD in _scaled(answering, groups, options):
        values = np.einsum("nd,nd->n", sketches_nD, search_GD[groups.codes[places]])
        if is_own_out:
            weighted_nD = sketches_nD if weights_DD is None else sketches_nD @ weights_DD
            values -= np.einsum("nd,nd->n", sketches_nD, weighted_nD)
        values_N[places] = values
    assert np.isfinite(values_N).all(), "every live sample has a sketch"
    return values_N


def _percentiles(values_n: np.ndarray) -> np.ndarray:
    """Share of the values below each, ties counted half, 0 to 100."""
    ordered = np.sort(values_n)
    below, up_to = (np.searchsorted(ordered, values_n, side=side) for side in ("left", "right"))
    shares: np.ndarray = np.round(100.0 * (below + up_to) / 2 / max(1, len(values_n)), 4)
    return shares
