"""Vision-language models of each family: their values are those of the model's own forward, whatever the batch."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoImageProcessor, Gemma3Processor, Idefics3Processor, LlavaProcessor
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from curator.errors import ModelError
from curator.models import CausalLM, Encoder, load_tokenizer
from curator.models.vision import load_vision
from curator.types import EncodedSample, Image, Sample
from tests.models.tiny_vision import (
    CONTEXT,
    ID,
    PLACEHOLDERS,
    VISION_FAMILIES,
    pixels,
    png,
    save_vision,
)

CPU = torch.device("cpu")
_FOLDER = TemporaryDirectory(prefix="tiny-vision-")
RESPONSE = "it is a seven"


@cache
def saved(family: str) -> Path:
    return save_vision(Path(_FOLDER.name) / family, family)


@cache
def loaded(family: str) -> CausalLM:
    return CausalLM.load(saved(family), device="cpu")


@cache
def encoder(family: str, positions: Any = "response", max_length: int = CONTEXT) -> Encoder:
    tokenizer = load_tokenizer(saved(family))
    return Encoder(
        tokenizer,
        max_length=max_length,
        vocab_size=loaded(family).vocab_size,
        positions=positions,
        vision=load_vision(saved(family), tokenizer),
    )


def sample(*sizes: tuple[int, int], prompt: str = "what digit?", response: str = RESPONSE) -> Sample:
    """A prompt with images of these sizes before it."""
    images = tuple(Image.of(png(*size, seed=number)) for number, size in enumerate(sizes))
    return Sample(prompt=prompt, response=response, images=images)


SAMPLES = [
    sample((40, 20)),
    sample(response="yes"),
    sample((9, 30), (16, 16), prompt="what digit is this, and that?"),
    sample((1, 1)),
    sample((33, 33), response="a"),
    Sample(text="what digit is this? it is a seven."),
]


def encoded(family: str, samples: list[Sample], **options: Any) -> list[EncodedSample]:
    items = encoder(family, **options).encode(samples)
    assert all(isinstance(item, EncodedSample) for item in items), items
    return items  # type: ignore[return-value]


def of_processor(family: str, prompt: str, images: list[Any]) -> dict[str, Any]:
    """What the family's own processor makes of a prompt with images: no code of ours, but for the last three families,
    whose AutoProcessor needs torchvision, so that its steps are written out."""
    directory = saved(family)
    text = (
        PLACEHOLDERS[family] * len(images) + ("" if family not in ("llava", "idefics3", "smolvlm") else "\n") + prompt
    )
    kinds = {"llava": LlavaProcessor, "idefics3": Idefics3Processor, "gemma3": Gemma3Processor}
    if family in kinds:
        processor = kinds[family].from_pretrained(directory)
        return dict(processor(images=[images], text=[text], return_tensors="pt"))
    tokenizer = load_tokenizer(directory)
    pictures = AutoImageProcessor.from_pretrained(directory, backend="pil")
    if family == "smolvlm":
        inputs = dict(pictures([images], return_row_col_info=True, return_tensors="pt"))
        for rows, columns in zip(inputs.pop("rows")[0], inputs.pop("cols")[0], strict=True):
            tokens = get_image_prompt_string(
                rows, columns, 4, "<fake_token_around_image>", "<placeholder>", "<global-img>"
            )
            text = text.replace("<image>", tokens, 1)
        ids = tokenizer(text.replace("<placeholder>", "<image>"), return_tensors="pt")["input_ids"]
        return inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs = dict(pictures(images, return_tensors="pt"))
    for grid in inputs["image_grid_thw"]:
        text = text.replace("<|image_pad|>", "<placeholder>" * (int(grid.prod()) // 4), 1)
    ids = tokenizer(text.replace("<placeholder>", "<|image_pad|>"), return_tensors="pt")["input_ids"]
    types = (ids == ID["<|image_pad|>"]).int()
    return inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types}


def whole_forward(family: str, one: Sample) -> tuple[torch.Tensor, list[int], torch.Tensor]:
    """Logits that predict the response and its end, its ids, and minus the gradient of the loss wrt the unembedding."""
    model = loaded(family)._model
    opened = [pixels(*_size(image), seed=number) for number, image in enumerate(one.images)]
    inputs = of_processor(family, one.prompt or "", opened)
    tokenizer = load_tokenizer(saved(family))
    response = [*tokenizer(one.response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    tail = torch.tensor([response])
    ones, zeros = torch.ones_like(tail), torch.zeros_like(tail)
    fillers = {"input_ids": tail, "attention_mask": ones, "token_type_ids": zeros, "mm_token_type_ids": zeros}
    for name, filler in fillers.items():
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], filler.to(inputs[name].dtype)], dim=1)
    embeddings = model.get_output_embeddings()
    kept = embeddings.weight
    embeddings.weight = torch.nn.Parameter(kept.detach().clone())  # untied: the unembedding's share alone
    try:
        logits = model(**inputs).logits[0, -len(response) - 1 : -1]
        cross_entropy(logits.float(), torch.tensor(response), reduction="sum").backward()
        gradient = embeddings.weight.grad
    finally:
        embeddings.weight = kept
    assert gradient is not None
    return logits.detach(), response, -gradient


def _size(image: Image) -> tuple[int, int]:
    import io

    from PIL import Image as Pillow

    assert image.data is not None
    return Pillow.open(io.BytesIO(image.data)).size


@pytest.mark.parametrize("family", VISION_FAMILIES)
@pytest.mark.parametrize("number", [0, 2, 3], ids=["one image", "two images", "one pixel"])
def test_logits_and_gradients_are_those_of_the_whole_model(family: str, number: int) -> None:
    """plain model(**processor inputs), and autograd on the unembedding (arXiv 2508.10180, section 3)."""
    lm, one = loaded(family), SAMPLES[number]
    counted = lm.hidden(encoded(family, [one]))
    logits, labels, gradient = whole_forward(family, one)
    assert counted.labels.tolist() == labels
    torch.testing.assert_close(lm.head.logits(counted.hidden), logits, rtol=1e-4, atol=1e-4)
    errors, _ = lm.head.errors(counted.hidden, counted.labels)
    torch.testing.assert_close(errors.T @ counted.hidden, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_states_do_not_depend_on_batch_mates_order_padding_or_image_sizes(family: str) -> None:
    lm, batch = loaded(family), encoded(family, SAMPLES)
    alone = [lm.hidden([one]) for one in batch]
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 4, 2, 0], [2, 1]):
        together = lm.hidden([batch[at] for at in order])
        hidden, all_labels = (values.split(together.counts) for values in (together.hidden, together.labels))
        for at, part, labels in zip(order, hidden, all_labels, strict=True):
            torch.testing.assert_close(part, alone[at].hidden, rtol=1e-4, atol=1e-4)
            assert torch.equal(labels, alone[at].labels)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_the_image_is_seen_and_only_its_own(family: str) -> None:
    lm = loaded(family)
    seen, other = (Sample(prompt="what?", response="it", images=(Image.of(png(24, 24, seed)),)) for seed in (1, 2))
    states = lm.hidden(encoded(family, [seen, other, seen])).hidden.reshape(3, -1)
    torch.testing.assert_close(states[0], states[2], rtol=1e-4, atol=1e-4)
    assert (states[0] - states[1]).abs().max() > 0.01


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_text_alone_passes_as_through_the_language_model(family: str) -> None:
    lm, (one,) = loaded(family), encoded(family, [SAMPLES[5]])
    assert not one.images
    logits = lm._model(torch.from_numpy(one.input_ids)[None]).logits[0, :-1]
    torch.testing.assert_close(lm.head.logits(lm.hidden([one]).hidden), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["response", "all"])
@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_what_counts_is_text_of_the_response_and_never_an_image(family: str, positions: str) -> None:
    own = encoder(family, positions)
    for one, item in zip(SAMPLES, encoded(family, SAMPLES, positions=positions), strict=True):
        counted = item.input_ids[item.counted].tolist()
        assert not set(counted) & {number for token, number in ID.items() if "im" in token or "vision" in token}
        response = own.tokenizer(one.response or "", add_special_tokens=False)["input_ids"]
        text = [*own.tokenizer(one.full_text, add_special_tokens=False)["input_ids"], 1]
        if positions == "response" and one.text is None:
            assert counted == [*response, 1]
        else:
            shown = own.tokenizer.decode(counted)
            assert shown.lstrip("\n") == own.tokenizer.decode(text), "line ends beside an image may go with it"


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_truncation_never_cuts_an_image(family: str) -> None:
    (whole,) = encoded(family, [SAMPLES[0]])
    for limit in range(2, whole.num_tokens + 1):
        (item,) = Encoder(
            encoder(family).tokenizer, max_length=limit, vocab_size=320, vision=encoder(family).vision, positions="all"
        ).encode([SAMPLES[0]])
        if isinstance(item, str):
            assert "image cut off" in item or "no counted token" in item
        else:
            assert (
                np.isin(item.input_ids, list(encoder(family).vision.special_ids)).sum()
                == np.isin(  # type: ignore[union-attr]
                    whole.input_ids,
                    list(encoder(family).vision.special_ids),  # type: ignore[union-attr]
                ).sum()
            )
    assert not isinstance(item, str)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_placeholders_and_images_must_match(family: str) -> None:
    own, image = encoder(family), Image.of(png(16, 16))
    for neutral in ("<image>", PLACEHOLDERS[family]):
        inside, none, two = own.encode(
            [
                Sample(prompt=f"look: {neutral} what?", response="a", images=(image,)),
                Sample(prompt=f"look: {neutral} what?", response="a"),
                Sample(prompt=f"{neutral} and {neutral}", response="a", images=(image,)),
            ]
        )
        assert isinstance(inside, EncodedSample)
        if neutral == PLACEHOLDERS[family]:
            assert none == f"image count: 1 placeholders ({own.vision.token}) for 0 images"  # type: ignore[union-attr]
        assert isinstance(two, str)
        assert "2 placeholders" in two
    (answer,) = own.encode([Sample(prompt="a", response=f"see {PLACEHOLDERS[family]}", images=(image,))])
    assert isinstance(answer, str)
    assert "the response holds an image's token" in answer


def test_broken_and_extreme_images_are_reasons() -> None:
    own = encoder("qwen2_5_vl")
    broken, narrow = own.encode(
        [
            Sample(prompt="a", response="b", images=(Image.of(png(16, 16)[:60]),)),
            Sample(prompt="a", response="b", images=(Image.of(png(1, 400)),)),
        ]
    )
    assert isinstance(broken, str)
    assert broken.startswith("broken image: ")
    assert narrow == (
        "image of 1 x 400 pixels refused by the model's processor: absolute aspect ratio must be smaller than 200, "
        "got 400.0"
    )


def test_images_for_a_model_that_reads_text_are_one_line() -> None:
    text_only = Encoder(encoder("llava").tokenizer, max_length=64, vocab_size=320)
    (item,) = text_only.encode([SAMPLES[0]])
    assert item == "images: the model reads text only; use a vision-language model, or leave --image-field out"


def test_a_model_without_an_image_processor_still_reads_text(tmp_path: Path) -> None:
    directory = save_vision(tmp_path, "llava")
    (directory / "preprocessor_config.json").unlink()
    (directory / "processor_config.json").unlink()
    assert CausalLM.load(directory, device="cpu").hidden(encoded("llava", [SAMPLES[5]])).counts == [11]
    with pytest.raises(ModelError, match="the images of llava cannot be processed here"):
        load_vision(directory, load_tokenizer(directory))


def chat(*sizes: tuple[int, int], **other: Any) -> Sample:
    """Images in the first turn and, with three of them, the last one in the second; two answers."""
    images = tuple(Image.of(png(*size, seed=number)) for number, size in enumerate(sizes))
    parts = [{"type": "image"} for _ in sizes]
    late = parts.pop() if len(parts) > 2 else None
    asked = [*parts, {"type": "text", "text": "what digit?"}]
    again = [late, {"type": "text", "text": "and this?"}] if late else "sure?"
    turns = [("user", asked), ("assistant", "it is a seven"), ("user", again), ("assistant", "it is a one")]
    return Sample(messages=[{"role": role, "content": content} for role, content in turns], images=images, **other)


@pytest.mark.parametrize("family", VISION_FAMILIES)
@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_of_a_conversation_exactly_the_answers_and_their_ends_count(family: str, num_images: int) -> None:
    own, one = encoder(family), chat(*[(40, 20), (16, 16), (9, 30)][:num_images])
    (item,) = encoded(family, [one])
    said = own.tokenizer("it is a seven<|im_end|>it is a one<|im_end|>", add_special_tokens=False)["input_ids"]
    assert item.input_ids[item.counted].tolist() == said
    assert item.images == one.images
    whole = own.tokenizer.decode(item.input_ids)
    assert own.vision is not None
    written = own.vision.expand(own.chat.render(one).text, one.images).text  # type: ignore[union-attr]
    assert whole == written


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_conversations_do_not_depend_on_their_batch(family: str) -> None:
    lm, batch = loaded(family), encoded(family, [chat((40, 20)), chat(), chat((9, 30), (16, 16), (8, 8)), SAMPLES[1]])
    together = lm.hidden(batch)
    for part, item in zip(together.hidden.split(together.counts), batch, strict=True):
        torch.testing.assert_close(part, lm.hidden([item]).hidden, rtol=1e-4, atol=1e-4)


PARTS_ONLY = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
    "{% for part in message.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_writes_only_lists_of_parts_gets_lists() -> None:
    """As LLaVA's and Idefics' own do: of a plain text they would write nothing, in silence."""
    usual = encoder("llava")
    own = Encoder(usual.tokenizer, max_length=256, vocab_size=320, vision=usual.vision, chat_template=PARTS_ONLY)
    for one in (chat(), chat((40, 20))):
        (item,), (expected,) = own.encode([one]), usual.encode([one])
        assert isinstance(item, EncodedSample)
        assert isinstance(expected, EncodedSample)
        assert item.input_ids.tolist() == expected.input_ids.tolist()
        assert item.counted.tolist() == expected.counted.tolist()


def test_images_and_parts_of_a_conversation_must_match() -> None:
    own, one = encoder("llava"), chat((16, 16))
    more = Sample(messages=one.messages, images=(*one.images, *one.images))
    typed = Sample(messages=[{"role": "user", "content": "see <image>"}, {"role": "assistant", "content": "a"}])
    assert own.encode([more]) == ["image count: 1 placeholders (<image>) for 2 images"]
    assert own.encode([typed]) == ["image count: 1 placeholders (<image>) for 0 images"]
    text_only = Encoder(own.tokenizer, max_length=64, vocab_size=320)
    (item,) = text_only.encode([one])
    assert isinstance(item, str)
    assert item.startswith("images: the model reads text only")


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_an_image_token_typed_into_a_text_is_a_reason(family: str) -> None:
    """Where the model puts what it sees, nothing but images may stand: one too many would shift the others' images."""
    own = encoder(family)
    token = own.tokenizer.convert_ids_to_tokens(min(own.vision.seen_ids))  # type: ignore[union-attr]
    chat_of = Sample(messages=[{"role": "user", "content": f"a {token}"}, {"role": "assistant", "content": "b"}])
    typed = [Sample(text=f"see {token} here"), Sample(prompt="a", response=f"b {token}"), chat_of]
    for item in own.encode(typed):
        assert isinstance(item, str), item
        assert item.startswith("image count: ")
