"""What is kept of a query: enough for every later answer from sketches and factors, without the model.

A query's gradient G is [V, H], a gigabyte where V = 150,000 and H = 1,536. Answers see it through the sketch and,
outside of that, on the space's hidden basis U_F alone (index/factors.py); so that is what is kept: the sketch, and
G U_F [V, F] without what the sketch explains. Both are linear in G, and so are values: queries add up.

    ||sum_i c_i G_i||^2 = sum_i c_i^2 ||G_i||^2 + sum_{i != j} c_i c_j (<sketch_i, sketch_j> + <outside_i, outside_j>)

which is exact where F = H; else the pairs miss what lies outside the hidden basis. Only cosine and `captured` use it:
where all gradients are there, the norm is that of their sum.

Shapes: P sketch width, V vocabulary, H hidden size, F factor rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from curator.value.represent import norms_of
from index.factors import outside
from index.projection import Projection
from index.stored import MappedTensors, StoredFile, write_durably

__all__ = ["QueryRepresentation"]

FORMAT = "forvalue-query/1"


@dataclass(frozen=True)
class QueryRepresentation:
    """A query in a space. `gradient` is there only where the query has just been run: the exact tier needs it."""

    sketch: torch.Tensor  # float32 [P]
    outside: torch.Tensor  # float32 [V, F]: G on the hidden basis without the sketch's part
    norm: float  # ||G||_F
    gradient: torch.Tensor | None = None  # float32 [V, H]

    @classmethod
    def of(cls, gradient: torch.Tensor, projection: Projection) -> "QueryRepresentation":
        """Of a gradient float32 [V, H]."""
        sketch = projection.sketch_gradient(gradient)
        return cls(sketch, outside(gradient, sketch, projection), float(norms_of(gradient)), gradient)

    @classmethod
    def combine(cls, terms: Sequence[tuple[float, "QueryRepresentation"]]) -> "QueryRepresentation":
        """sum_i c_i G_i of one or more (c_i, query), all of one space."""
        parts = [part for _, part in terms]
        products = torch.tensor([[one._inner(other) for other in parts] for one in parts], dtype=torch.float64)
        products.diagonal().copy_(torch.tensor([part.norm**2 for part in parts], dtype=torch.float64))
        factors = torch.tensor([factor for factor, _ in terms], dtype=torch.float64)
        gradients = [part.gradient for part in parts if part.gradient is not None]
        gradient = _weighted(factors, gradients) if len(gradients) == len(parts) else None
        norm = float((factors @ products @ factors).clamp_min(0.0).sqrt())
        return cls(
            _weighted(factors, [part.sketch for part in parts]),
            _weighted(factors, [part.outside for part in parts]),
            # A guarantee (curator/query/trust.py) may not rest on what the pairs miss.
            norm if gradient is None else float(norms_of(gradient)),
            gradient,
        )

    def core(self, projection: Projection) -> torch.Tensor:
        """S = U_e^T G U_h of the query, float32 [M, R]: U_h is the first R columns of the hidden basis."""
        size = (projection.error_rank, projection.hidden_rank)
        seen = (projection.rotation @ self.sketch).reshape(size)
        return seen + projection.error_basis.T @ self.outside[:, : projection.hidden_rank]

    def damped(self, weights: torch.Tensor, projection: Projection) -> "QueryRepresentation":
        """Of G - U_e (w o S) U_h^T, with w float32 [M, R]."""
        core = self.core(projection)
        taken = weights * core
        sketch = taken.flatten() @ projection.rotation
        rest = self.outside.clone()
        unseen = (projection.rotation @ sketch).reshape(taken.shape) - taken
        rest[:, : projection.hidden_rank].addmm_(projection.error_basis, unseen)
        gradient = self.gradient
        if gradient is not None:
            hidden_basis = projection.hidden_basis[:, : projection.hidden_rank]
            gradient = torch.addmm(gradient, projection.error_basis @ taken, hidden_basis.T, alpha=-1)
        energy = self.norm**2 + float(((core - taken).double().square() - core.double().square()).sum())
        return QueryRepresentation(self.sketch - sketch, rest, max(0.0, energy) ** 0.5, gradient)

    def _inner(self, other: "QueryRepresentation") -> float:
        inside = self.sketch.double() @ other.sketch.double()
        return float(inside + (self.outside.double() * other.outside.double()).sum())

    def scaled(self, factor: float) -> "QueryRepresentation":
        """Of factor * G, factor > 0."""
        gradient = None if self.gradient is None else self.gradient * factor
        return QueryRepresentation(self.sketch * factor, self.outside * factor, self.norm * factor, gradient)

    def to(self, device: torch.device) -> "QueryRepresentation":
        """The same on a device."""
        gradient = None if self.gradient is None else self.gradient.to(device)
        return QueryRepresentation(self.sketch.to(device), self.outside.to(device), self.norm, gradient)

    def save(self, path: Path) -> StoredFile:
        """Writes it durably: `outside` as float16 with one scale a row, half a thousandth of each entry."""
        scales = self.outside.abs().amax(dim=1).cpu()
        codes = (self.outside.cpu() / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).half()
        norm = torch.tensor([self.norm], dtype=torch.float32)
        tensors = {"sketch": self.sketch.cpu().float(), "codes": codes, "scales": scales, "norm": norm}
        return write_durably(path, save(tensors, {"format": FORMAT}))

    @classmethod
    def load(cls, path: Path) -> "QueryRepresentation":
        """Reads what `save` wrote. Raises StoredFileError for a file that is missing or damaged in its structure."""
        stored = MappedTensors(path, FORMAT)
        for name, dtype, num_dims in (("sketch", "float32", 1), ("codes", "float16", 2), ("scales", "float32", 1)):
            stored.shape(name, dtype, num_dims)
        stored.shape("norm", "float32", 1)
        rest = stored.tensor("codes").float() * stored.tensor("scales")[:, None]
        return cls(stored.tensor("sketch").clone(), rest, float(stored.array("norm")[0]))


def _weighted(factors: torch.Tensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    total = torch.zeros_like(parts[0])
    for factor, part in zip(factors.tolist(), parts, strict=True):
        total.add_(part, alpha=factor)
    return total
