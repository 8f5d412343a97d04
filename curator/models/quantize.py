"""Weights in fewer bits (torchao), for models that do not fit the device as they are.

The unembedding stays whole: prediction errors and values are those of the quantized model as it is, and it is a space
of its own. Adapters are merged into whole weights, so the two exclude each other.
"""

from typing import Any, Literal, get_args

from curator.errors import ModelError, UsageError

__all__ = ["QUANTIZATIONS", "Quantize", "quantization"]

Quantize = Literal["none", "int8"]
QUANTIZATIONS: tuple[Quantize, ...] = get_args(Quantize)


def quantization(quantize: str) -> dict[str, Any]:
    """What `from_pretrained` is to be told. Raises UsageError for an unknown name, ModelError without torchao."""
    if quantize not in QUANTIZATIONS:
        raise UsageError(f"quantize {quantize!r} is not known; use one of {', '.join(QUANTIZATIONS)}")
    if quantize == "none":
        return {}
    try:
        from torchao.quantization import Int8WeightOnlyConfig  # deferred: an extra, and slow
        from transformers import TorchAoConfig
    except ImportError as error:
        raise ModelError("quantized weights need torchao: pip install 'forvalue-curator[quantize]'") from error
    return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
