"""Models and tokenizers: samples to token ids, token ids to last hidden states and prediction errors."""

from curator.models.batches import make_batches
from curator.models.causal_lm import (
    CausalLM,
    CountedHidden,
    check_tokenizer,
    load_limits,
    load_tokenizer,
    locate,
    pick_device,
)
from curator.models.chat import own_template, read_template
from curator.models.checkpoint import Checkpoint, find_checkpoint, hashes_of
from curator.models.encode import Encoder, OnLong, Positions
from curator.models.fingerprint import FileStamp, hash_model_files
from curator.models.head import Head
from curator.models.quantize import QUANTIZATIONS, Quantize
from curator.models.vision import Vision, load_vision, vision_options

__all__ = [
    "QUANTIZATIONS",
    "CausalLM",
    "Checkpoint",
    "CountedHidden",
    "Encoder",
    "FileStamp",
    "Head",
    "OnLong",
    "Positions",
    "Quantize",
    "Vision",
    "check_tokenizer",
    "find_checkpoint",
    "hash_model_files",
    "hashes_of",
    "load_limits",
    "load_tokenizer",
    "load_vision",
    "locate",
    "make_batches",
    "own_template",
    "pick_device",
    "read_template",
    "vision_options",
]
