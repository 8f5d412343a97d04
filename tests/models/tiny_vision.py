"""Tiny random vision-language models, one of each family, written as checkpoints of the hub would be."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PilImage
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from tests.models.tiny import _DECODER, VOCAB_SIZE

CONTEXT = 256
_TEXT = _DECODER | {"vocab_size": VOCAB_SIZE, "max_position_embeddings": CONTEXT, "tie_word_embeddings": False}
_SPECIAL = (
    "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>",
    "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
    *(f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)),
    "<start_of_image>", "<image_soft_token>", "<end_of_image>",
    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
ID = {token: number for number, token in enumerate(_SPECIAL)}
_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "initializer_range": 0.2}
_QWEN = {
    "image_token_id": ID["<|image_pad|>"],
    "video_token_id": ID["<|video_pad|>"],
    "vision_start_token_id": ID["<|vision_start|>"],
    "vision_end_token_id": ID["<|vision_end|>"],
}
_QWEN_VISION = {"hidden_size": 16, "intermediate_size": 24, "depth": 2, "num_heads": 2, "patch_size": 4,
                "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32,
                "initializer_range": 0.2}  # fmt: skip
_QWEN_TEXT = _TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
_IDEFICS = {
    "image_token_id": ID["<image>"],
    "vision_config": _VISION | {"image_size": 16, "patch_size": 4, "num_hidden_layers": 2},
    "scale_factor": 2,
}
_LLAMA = _TEXT | {"model_type": "llama"}
_IDEFICS_IMAGES = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}

# family: (configuration, image processor's class and settings, processor's class and settings)
_FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "llava": (
        {
            "model_type": "llava",
            "image_token_index": ID["<image>"],
            "vision_config": _VISION | {"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8,
                                        "num_hidden_layers": 3},
            "text_config": _LLAMA,
        },
        {"image_processor_type": "LlavaImageProcessor", "size": {"shortest_edge": 16},
         "crop_size": {"height": 16, "width": 16}},
        {"processor_class": "LlavaProcessor", "patch_size": 8, "num_additional_image_tokens": 1,
         "vision_feature_select_strategy": "default"},
    ),
    "idefics3": (
        {"model_type": "idefics3", "text_config": _LLAMA} | _IDEFICS,
        {"image_processor_type": "Idefics3ImageProcessor"} | _IDEFICS_IMAGES,
        {"processor_class": "Idefics3Processor", "image_seq_len": 4},
    ),
    "smolvlm": (
        {"model_type": "smolvlm", "text_config": _LLAMA} | _IDEFICS,
        {"image_processor_type": "SmolVLMImageProcessor"} | _IDEFICS_IMAGES,
        {"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
    ),
    "gemma3": (
        {
            "model_type": "gemma3",
            "image_token_index": ID["<image_soft_token>"],
            "boi_token_index": ID["<start_of_image>"],
            "eoi_token_index": ID["<end_of_image>"],
            "mm_tokens_per_image": 4,
            "vision_config": _VISION | {"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4,
                                        "num_hidden_layers": 2},
            "text_config": _TEXT | {"query_pre_attn_scalar": 8, "sliding_window": 8, "tie_word_embeddings": True,
                                    "layer_types": ["sliding_attention", "full_attention"],
                                    "final_logit_softcapping": None},
            "tie_word_embeddings": True,
        },
        {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 16, "width": 16}},
        {"processor_class": "Gemma3Processor", "image_seq_length": 4},
    ),
    "qwen2_5_vl": (
        {
            "model_type": "qwen2_5_vl",
            "vision_config": _QWEN_VISION | {"window_size": 16, "fullatt_block_indexes": [1]},
            "text_config": _QWEN_TEXT | {"model_type": "qwen2_5_vl_text"},
        } | _QWEN,
        {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 4, "merge_size": 2,
         "size": {"shortest_edge": 64, "longest_edge": 768}},
        {"processor_class": "Qwen2_5_VLProcessor"},
    ),
    "qwen3_vl": (
        {
            "model_type": "qwen3_vl",
            "vision_config": _QWEN_VISION | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
            "text_config": _QWEN_TEXT | {"model_type": "qwen3_vl_text"},
        } | _QWEN,
        {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 4, "merge_size": 2,
         "size": {"shortest_edge": 64, "longest_edge": 768}},
        {"processor_class": "Qwen3VLProcessor"},
    ),
}  # fmt: skip
VISION_FAMILIES = tuple(_FAMILIES)

# What stands for an image in the text: for the family's own processor, and in its chat template.
PLACEHOLDERS = dict.fromkeys(VISION_FAMILIES, "<image>") | {
    "gemma3": "<start_of_image>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
}
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}PLACEHOLDER{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "what digit is this? it is a seven. user assistant\n\n\nseven\n\n"
    tokenizer.train_from_iterator([text] * 4, trainer)
    return str(tokenizer.to_str())


def vision_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the image tokens of every family; `<s>` goes before a text."""
    tokenizer = Tokenizer.from_str(_trained())
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        **({"extra_special_tokens": named} if family == "gemma3" else {}),
    )


def vision_model(family: str, seed: int = 0, **text_changes: Any) -> Any:
    """A random model of a family."""
    settings = dict(_FAMILIES[family][0])
    settings["text_config"] = settings["text_config"] | text_changes
    config = AutoConfig.for_model(**{"pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1} | settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
            elif name.endswith(("mm_input_projection_weight", "position_embedding.weight", "pos_embed.weight")):
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def save_vision(directory: Path, family: str, seed: int = 0, *, has_template: bool = True, **text_changes: Any) -> Path:
    """Model, tokenizer, image processor and chat template of a family."""
    _, images, processor = _FAMILIES[family]
    vision_model(family, seed, **text_changes).save_pretrained(directory)
    vision_tokenizer(family).save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(images))
    (directory / "processor_config.json").write_text(json.dumps(processor))
    if has_template:
        template = _TEMPLATE.replace("PLACEHOLDER", PLACEHOLDERS[family])
        (directory / "chat_template.jinja").write_text(template)
    return directory


def pixels(width: int, height: int, seed: int = 0) -> PilImage.Image:
    """A random image: soft blobs, so that resizing keeps something of it."""
    random = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return PilImage.fromarray(random).resize((width, height), PilImage.Resampling.BILINEAR)


def png(width: int, height: int, seed: int = 0) -> bytes:
    """The same as the bytes of a PNG file."""
    file = io.BytesIO()
    pixels(width, height, seed).save(file, "PNG")
    return file.getvalue()
