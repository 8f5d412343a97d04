"""What is kept of a query answers as its gradient would, and adds up as queries do."""

from pathlib import Path

import numpy as np
import pytest
import torch

from curator.value import METHODS, Method, QueryRepresentation, prepare
from index.errors import StoredFileError
from index.factors import token_values
from index.projection import Projection
from index.stored import hash_file
from tests.value.test_methods import H, V, world


def representation(seed: int) -> QueryRepresentation:
    gradient = torch.randn(V, H, generator=torch.Generator().manual_seed(seed))
    return QueryRepresentation.of(gradient, world()[2])


@pytest.mark.parametrize("method", METHODS)
def test_values_are_linear_in_the_query(method: Method) -> None:
    """v(2 a - 0.5 b) = 2 v(a) - 0.5 v(b), at every tier; for cosine up to the norms, which are exact where F = H."""
    projection, samples = world()[2], world()[3]
    one, other = representation(1), representation(2)
    both = QueryRepresentation.combine([(2.0, one), (-0.5, other)])
    assert both.gradient is not None
    assert one.gradient is not None
    assert other.gradient is not None
    torch.testing.assert_close(both.gradient, 2.0 * one.gradient - 0.5 * other.gradient)
    assert both.norm == pytest.approx(float((2.0 * one.gradient - 0.5 * other.gradient).double().norm()), rel=1e-5)
    prepared = [prepare(query, projection, method, 10.0) for query in (both, one, other)]
    weights = np.array([2.0, -0.5])
    if method == "cosine":
        weights = weights * [one.norm, other.norm] / both.norm
    for sample in samples:
        found, first, second = (
            float(sample.sketch @ query.search) + float(token_values(sample.factors, query.outside).sum())
            for query in prepared
        )
        assert found == pytest.approx(weights @ [first, second], rel=1e-4, abs=1e-4 * sample.norm)


@pytest.mark.parametrize("method", METHODS)
def test_the_bound_holds_for_a_sum_of_queries_whose_factors_keep_part_of_the_hidden_space(method: Method) -> None:
    """|<G_i, G'> - sketch_i . search| <= ||r_i|| ||r'||: what a sum misses comes from its whole gradient."""
    gradients, _, whole, _, _ = world()
    narrow = Projection(
        whole.error_basis, whole.hidden_basis[:, : whole.hidden_rank], whole.rotation, whole.second_moment
    )
    directions = torch.linalg.qr(narrow.hidden_basis, mode="complete")[0]
    generator = torch.Generator().manual_seed(7)
    common = torch.randn(V, 1, generator=generator) * directions[:, -1]  # on no basis, in both
    parts = [QueryRepresentation.of(common + 0.1 * torch.randn(V, H, generator=generator), narrow) for _ in range(2)]
    query = prepare(QueryRepresentation.combine([(1.0, part) for part in parts]), narrow, method, 10.0)
    assert query.gradient is not None
    like_it = (query.gradient / query.gradient.norm()).double().numpy().flatten()
    for row in [*gradients, like_it]:
        sketch = narrow.sketch_gradient(torch.from_numpy(row).float().reshape(V, H)).double().numpy()
        error = row @ query.gradient.double().numpy().flatten() - sketch @ query.search
        rest = max(0.0, row @ row - sketch @ sketch) ** 0.5
        assert abs(error) <= rest * query.missed * (1 + 1e-4) + 1e-6


def test_a_stored_query_is_the_same_query(tmp_path: Path) -> None:
    """Up to float16 with a scale for each row, whatever the size of the rows; the sketch and the norm are whole."""
    before = representation(3)
    before = QueryRepresentation(before.sketch, before.outside * torch.logspace(-30, 3, V)[:, None], before.norm)
    stored = before.save(tmp_path / "query")
    assert stored.sha256 == hash_file(tmp_path / "query")
    after = QueryRepresentation.load(tmp_path / "query")
    assert torch.equal(after.sketch, before.sketch)
    assert after.gradient is None
    assert after.norm == pytest.approx(before.norm, rel=1e-6)
    error = (after.outside - before.outside).abs().amax(1) / before.outside.abs().amax(1)
    assert error.max() < 2**-11


def test_a_row_of_zeros_stays_zero(tmp_path: Path) -> None:
    """A token that neither the query nor the model thought of."""
    before = representation(4)
    before.outside[5] = 0.0
    before.save(tmp_path / "query")
    assert not QueryRepresentation.load(tmp_path / "query").outside[5].any()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    representation(5).save(tmp_path / "query")
    data = (tmp_path / "query").read_bytes()
    (tmp_path / "cut").write_bytes(data[:-7])
    with pytest.raises(StoredFileError, match="cut"):
        QueryRepresentation.load(tmp_path / "cut")
