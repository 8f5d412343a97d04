"""Tiny random models and a tiny tokenizer: real architectures, a thousandth of the size, built in milliseconds."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 320
CONTEXT = 64

_COMMON = {"vocab_size": VOCAB_SIZE, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_DECODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    # Ten times the usual deviation: attention and logits far from uniform, so that a mistake in them shows.
    "initializer_range": 0.2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "initializer_range": 0.2}

# family: (model type, what its configuration adds)
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _DECODER | {"tie_word_embeddings": False}),
    "llama_tied": ("llama", _DECODER | {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", _DECODER | {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", _DECODER | {"tie_word_embeddings": True}),
    "mistral": ("mistral", _DECODER | {"sliding_window": 4}),
    "gemma2": ("gemma2", _DECODER | {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", _DECODER | {"query_pre_attn_scalar": 8, "sliding_window": 4}),
    "granite": ("granite", _DECODER | {"logits_scaling": 1.7, "tie_word_embeddings": False}),
    "cohere": ("cohere", _DECODER | {"logit_scale": 0.25}),
    "phi": ("phi", _DECODER),
    "mixtral": ("mixtral", _DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("qwen3_moe", _DECODER | _EXPERTS | {"moe_intermediate_size": 24}),
    "llama4": (
        "llama4_text",
        _DECODER | {"num_local_experts": 4, "attention_chunk_size": 4, "intermediate_size_mlp": 48},
    ),
    "gpt2": ("gpt2", _GPT2),
    "gpt_neox": ("gpt_neox", _DECODER),
    "falcon_h1": ("falcon_h1", _DECODER | _MAMBA | {"lm_head_multiplier": 0.3, "tie_word_embeddings": False}),
    "recurrent_gemma": (
        "recurrent_gemma",
        _DECODER | {"num_hidden_layers": 3, "logits_soft_cap": 5.0, "attention_window_size": 8},
    ),
}
FAMILIES = tuple(_FAMILIES)


def tiny_config(family: str, **changes: Any) -> Any:
    """The configuration of a tiny model of a family, with some of its values changed."""
    model_type, own = _FAMILIES[family]
    return AutoConfig.for_model(model_type, **(_COMMON | own | changes))


def tiny_model(family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random causal language model of a family. Biases are random too: zeros would hide that they are ignored."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(family, **changes)).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    return model.to(dtype)


@cache
def _trained(special: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "the capital of France is Paris. two and three make five; what is the opposite of hot? it is cold."
    tokenizer.train_from_iterator([text] * 4, trainer)
    return str(tokenizer.to_str())


def tiny_tokenizer(*, bos: bool = True, eos: bool = True, appends_eos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most VOCAB_SIZE tokens: `<s>` 0 (put before a text), `</s>` 1, `<pad>` 2.

    Without `bos` nothing is put before a text, without `eos` there is no such token; `appends_eos` puts it at the end.
    """
    tokenizer = Tokenizer.from_str(_trained(("<s>", "</s>", "<pad>")))
    special = [("<s>", 0), ("</s>", 1)]
    template = f"{'<s> ' if bos else ''}$A{' </s>' if appends_eos else ''}"
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    names = {"pad_token": "<pad>"} | ({"bos_token": "<s>"} if bos else {}) | ({"eos_token": "</s>"} if eos else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save_tiny(
    directory: Path, family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """A tiny model and the tiny tokenizer, written as a checkpoint of the hub would be."""
    tiny_model(family, seed, dtype, **changes).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory
