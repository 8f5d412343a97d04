"""A quantized model is valued as it is: by its own hidden states and the whole unembedding."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from curator.errors import ModelError, UsageError
from curator.models import CausalLM
from curator.types import EncodedSample
from tests.models.tiny import VOCAB_SIZE, save_tiny

HAS_TORCHAO = importlib.util.find_spec("torchao") is not None
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
IDS = np.arange(5, 25) % VOCAB_SIZE
SAMPLE = EncodedSample(IDS, np.arange(len(IDS)) > 0)


def test_an_unknown_name_and_an_adapter_beside_it_are_refused(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    with pytest.raises(UsageError, match="quantize 'int3' is not known; use one of none, int8"):
        CausalLM.load(model, device="cpu", quantize="int3")
    with pytest.raises(UsageError, match="leave --quantize out"):
        CausalLM.load(model, device="cpu", quantize="int8", adapter=tmp_path)


@pytest.mark.skipif(HAS_TORCHAO, reason="torchao is installed")
def test_without_torchao_one_line_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"pip install 'forvalue-curator\[quantize\]'"):
        CausalLM.load(save_tiny(tmp_path / "model"), device="cpu", quantize="int8")


@pytest.mark.skipif(not HAS_TORCHAO, reason="torchao is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])])
def test_values_are_those_of_the_quantized_model(tmp_path: Path, device: str) -> None:
    """Errors are minus the gradient of its own loss with respect to its logits; and it is not the whole model."""
    model = save_tiny(tmp_path / "model")
    lm = CausalLM.load(model, device=device, quantize="int8")
    whole = CausalLM.load(model, device=device)
    assert type(lm._model.model.layers[0].mlp.up_proj.weight) is not type(
        whole._model.model.layers[0].mlp.up_proj.weight
    )
    assert torch.equal(lm.head.weight, whole.head.weight)
    found = lm.hidden([SAMPLE])
    errors, _ = lm.head.errors(found.hidden, found.labels)
    logits = torch.from_numpy(lm.forward([SAMPLE])[0, :-1].cpu().numpy()).requires_grad_(True)
    torch.nn.functional.cross_entropy(logits, found.labels.cpu().clone(), reduction="sum").backward()
    assert logits.grad is not None
    torch.testing.assert_close(errors.cpu(), -logits.grad, rtol=1e-4, atol=1e-5)
    assert 1e-4 < (found.hidden - whole.hidden([SAMPLE]).hidden).abs().max() < 1.0
