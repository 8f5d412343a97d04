#!/usr/bin/env python
"""Makes a model directory of a real architecture with random weights, for benchmarks of speed: never for values.

    scripts/make_random_model.py --architecture qwen2-0.5b --text train.jsonl.gz --out /tmp/qwen2-0.5b

The tokenizer is a byte-level BPE of the text given, so that samples have lengths as real ones have.
"""

import argparse
import gzip
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

# Published configurations, word for word: https://huggingface.co/Qwen/Qwen2.5-0.5B and its larger sister.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2-0.5b": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "tie_word_embeddings": True,
    },
    "qwen2-1.5b": {
        "vocab_size": 151_936,
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "tie_word_embeddings": True,
    },
}


def main() -> None:
    """Parses the command line and writes the directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="qwen2-0.5b")
    parser.add_argument("--layers", type=int, help="fewer layers than the architecture has")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--text", type=Path, required=True, help="what the tokenizer is trained on, plain or .gz")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    options = ARCHITECTURES[args.architecture] | ({"num_hidden_layers": args.layers} if args.layers else {})
    torch.manual_seed(0)
    options |= {"max_position_embeddings": 32_768, "rope_theta": 1_000_000.0}
    config = Qwen2Config(**options)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype))
    with torch.no_grad():  # logits spread as a trained model's: with the initial ones every error is the same
        model.get_output_embeddings().weight.mul_(5.0)
    model.save_pretrained(args.out)
    save_tokenizer(args.text, args.out)


def save_tokenizer(text: Path, out: Path) -> None:
    """Trains a byte-level BPE on the lines of a file and saves it beside the model."""
    tokenizer = ByteLevelBPETokenizer()
    with gzip.open(text, "rt") if text.suffix == ".gz" else text.open() as file:
        tokenizer.train_from_iterator(file, vocab_size=32_000, special_tokens=["<eos>"], show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="<eos>").save_pretrained(out)


if __name__ == "__main__":
    main()
