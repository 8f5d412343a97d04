"""The image side of a vision-language model: which tokens stand for an image, and the numbers the model gets of it.

Both come from the family's own processor (transformers), called for one sample at a time, so that a sample's numbers
cannot depend on its batch. Videos are not read: their processors need torchvision, so the processor is put together
without that part, and images are always processed by Pillow, whose resizing is another than torchvision's.

Which tokens stand for an image depends on its size alone; so encoding a sample needs the processor once for each size,
and the numbers are made when the model needs them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from curator.errors import ModelError
from curator.sources.images import ImageError, open_image, read_image
from curator.types import Image

__all__ = ["PLACEHOLDER", "Expanded", "Vision", "image_groups", "is_vision_config", "load_vision", "vision_options"]

PLACEHOLDER = "<image>"  # what stands for an image in data, whatever the model's own token is
# Families whose samples' images may be joined along the first axis: tested. Samples of others go through alone.
_JOINED = {
    "llava", "idefics3", "smolvlm", "gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe",
}  # fmt: skip
_NESTED = {"idefics3", "smolvlm"}  # [1, images, ...] for one sample; the model flattens it again
# SmolVLM's own processor writes out the number of a video's frames with one more package; images go as in Idefics3.
_INSTEAD = {"SmolVLMProcessor": "Idefics3Processor"}
_TEXT_KEYS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "text_replacement_offsets")
_SIZES = 4096  # of images whose tokens are remembered


@dataclass(frozen=True)
class Expanded:
    """A text with every placeholder replaced by its image's tokens. spans: (start, end) of these in the new text;
    shifts: (old end, characters added so far), by which positions of the old text are found in the new one."""

    text: str
    spans: list[tuple[int, int]]
    shifts: list[tuple[int, int]]

    def moved(self, position: int) -> int:
        """Where a character of the old text lies now."""
        return position + next((added for end, added in reversed(self.shifts) if end <= position), 0)


class Vision:
    """The processor of one model directory. Raises ModelError when it gives no tokens for an image."""

    def __init__(self, processor: Any, config: Any):
        self.processor = processor
        self.model_type: str = config.model_type
        self.token: str = processor.image_token
        self.special_ids = _special_ids(config, processor)
        # In whose places the model puts what it sees: one too many, and images of others would be shifted into it.
        self.seen_ids = frozenset(
            value for name, value in vars(config).items() if name.startswith(("image_token_", "video_token_"))
        )
        start, end = (getattr(config, f"vision_{side}_token_id", None) for side in ("start", "end"))
        names = processor.tokenizer.convert_ids_to_tokens
        around: tuple[str, str] = ("", "") if start is None or end is None else (names(start), names(end))
        self._before, self._after = around
        self._tokens_of = lru_cache(_SIZES)(self._measure)

    def place(self, text: str, num_images: int) -> str:
        """The text with the model's own placeholder for each image: where the text has placeholders, else before it.

        Raises ImageError when it holds placeholders, and not one for each image.
        """
        if self.token != PLACEHOLDER and self.token not in text:
            text = text.replace(PLACEHOLDER, self._placeholder)
        found = text.count(self.token)
        if found == num_images:
            return text
        if found:
            raise ImageError(f"image count: {found} placeholders ({self.token}) for {num_images} images")
        return self._placeholder * num_images + ("\n" if self._is_bare else "") + text

    @property
    def _placeholder(self) -> str:
        return f"{self._before}{self.token}{self._after}"

    @property
    def _is_bare(self) -> bool:
        """Whether nothing but the placeholder itself tells the image from the text: then a line end does."""
        return self.token == PLACEHOLDER

    def expand(self, text: str, images: Sequence[Image]) -> Expanded:
        """Replaces the placeholders in order, as the family's processor does. Raises ImageError."""
        parts = text.split(self.token)
        if len(parts) != len(images) + 1:
            raise ImageError(f"image count: {len(parts) - 1} placeholders ({self.token}) for {len(images)} images")
        expanded, spans, shifts, old_end = parts[0], [], [], len(parts[0])
        for image, part in zip(images, parts[1:], strict=True):
            tokens = self._tokens_for(image)
            start = len(expanded)
            expanded += tokens + part
            spans.append((start, start + len(tokens)))
            old_end += len(self.token)
            shifts.append((old_end, start + len(tokens) - old_end))
            old_end += len(part)
        return Expanded(expanded, spans, shifts)

    def _tokens_for(self, image: Image) -> str:
        return str(self._tokens_of(open_image(read_image(image)).size))

    def _measure(self, size: tuple[int, int]) -> str:
        from PIL import Image as Pillow

        try:
            found = self.processor(
                images=[[Pillow.new("RGB", size)]], text=[self.token], return_text_replacement_offsets=True
            )
        except (ValueError, RuntimeError, ZeroDivisionError) as error:  # an aspect ratio, say
            reason = " ".join(str(error).split())[:200]
            what = f"image of {size[0]:,} x {size[1]:,} pixels refused by the model's processor"
            raise ImageError(f"{what}: {reason}") from error
        return str(found["text_replacement_offsets"][0][0]["replacement"])

    def features(self, images: Sequence[Image]) -> dict[str, torch.Tensor]:
        """What the model gets of one sample's images, by the name of its argument."""
        opened = [open_image(read_image(image)) for image in images]
        found = self.processor(images=[opened], text=[self.token * len(opened)], return_tensors="pt")
        features = {name: value for name, value in found.items() if name not in _TEXT_KEYS}
        if self.model_type in _NESTED:
            features = {name: value.transpose(0, 1).contiguous() for name, value in features.items()}
        return features

    @property
    def joins(self) -> bool:
        """Whether several samples with images may share a batch."""
        return self.model_type in _JOINED

    @property
    def types_name(self) -> str | None:
        """The argument by which the model learns which tokens are images', where it needs one."""
        if not getattr(self.processor, "return_mm_token_type_ids", False):
            return None
        return "token_type_ids" if self.model_type.startswith("gemma") else "mm_token_type_ids"

    def token_types(self, ids: list[int]) -> list[int]:
        """1 for an image's token, 0 for text."""
        types: list[list[int]] = self.processor.create_mm_token_type_ids([ids])
        return types[0]


def image_groups(features: Sequence[dict[str, torch.Tensor]], *, joins: bool) -> Iterator[list[int]]:
    """Samples that may go through the model together: without images, or with ones of the same shape per image."""
    groups: dict[object, list[int]] = {}
    for at, found in enumerate(features):
        shape: object = tuple((name, value.shape[1:]) for name, value in sorted(found.items()))
        if found and not joins:
            shape = at
        groups.setdefault(shape, []).append(at)
    text = groups.pop((), [])
    for at, group in enumerate(groups.values()):
        yield group + (text if at == 0 and joins else [])
    if text and not (groups and joins):
        yield text


def is_vision_config(config: Any) -> bool:
    """Whether a model's configuration is one of the image-text-to-text models."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def load_vision(directory: Path, tokenizer: Any) -> Vision | None:
    """The image side of a model directory; None for a model that reads text only.

    The chat template of the processor becomes the tokenizer's where that has none. Raises ModelError when the files
    of a vision-language model have no processor that can be used here.
    """
    from transformers import PROCESSOR_MAPPING, AutoConfig, AutoImageProcessor, Idefics3Processor

    config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    if not is_vision_config(config):
        return None
    try:
        kind: Any = PROCESSOR_MAPPING[type(config)]
        if kind.__name__ in _INSTEAD:
            kind = Idefics3Processor
        images = AutoImageProcessor.from_pretrained(
            directory, backend="pil", trust_remote_code=False, local_files_only=True
        )
        settings, _ = kind.get_processor_dict(directory, local_files_only=True)
        processor = _without_video(kind, images, tokenizer, settings)
        vision = Vision(processor, config)
        vision.expand(vision.token, [Image.of(_PROBE)])
    except Exception as error:  # as many types as there are ways for somebody's files to be wrong
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"the images of {config.model_type} cannot be processed here: {reason}") from error
    if tokenizer.chat_template is None:
        tokenizer.chat_template = processor.chat_template
    return vision


def vision_options(directory: Path, tokenizer: Any) -> dict[str, Any]:
    """What an Encoder is to know of a model's images: `vision`, or where it has none that can be used `why_no_images`;
    its text can be read all the same."""
    try:
        return {"vision": load_vision(directory, tokenizer)}
    except ModelError as error:
        return {"why_no_images": str(error)}


def _without_video(kind: Any, images: Any, tokenizer: Any, settings: dict[str, Any]) -> Any:
    class ImagesOnly(kind):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return type(None) if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    given = {"image_processor": images, "tokenizer": tokenizer}
    parts = [given.get(name) for name in kind.get_attributes()]
    return ImagesOnly.from_args_and_dict(parts, settings)


def _special_ids(config: Any, processor: Any) -> frozenset[int]:
    """Tokens that only ever stand for (parts of) images and videos, or begin and end them."""
    found = set()
    for thing in (config, processor):
        for name, value in vars(thing).items():
            is_name = name.endswith(("token_id", "token_index")) and name.startswith(
                ("image", "video", "vision", "boi", "eoi", "fake", "global")
            )
            if is_name and isinstance(value, int):
                found.add(value)
    return frozenset(found)


_PROBE = bytes.fromhex(  # a PNG of one white pixel
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f0005fe02fe"
    "0def46b80000000049454e44ae426082"
)
