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

__all__ = [
    "CausalLM",
    "Checkpoint",
    "CountedHidden",
    "Encoder",
    "FileStamp",
    "Head",
    "OnLong",
    "Positions",
    "check_tokenizer",
    "find_checkpoint",
    "hash_model_files",
    "hashes_of",
    "load_limits",
    "load_tokenizer",
    "locate",
    "make_batches",
    "own_template",
    "pick_device",
    "read_template",
]
