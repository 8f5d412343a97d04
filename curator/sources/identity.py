"""What makes two samples the same sample."""

import json
from hashlib import blake2b
from typing import Any

from curator.types import Sample

__all__ = ["HASH_BYTES", "content_hash"]

HASH_BYTES = 16  # collisions by chance need about 2**64 samples


def content_hash(sample: Sample) -> bytes:
    """16 bytes that are equal for equal content, so that reading the same data twice adds nothing.

    Content is what the model reads, split as it is split: (text), (prompt, response) or (messages, tools), the bytes of
    its images, and the user's own key where one is given. The key counts because a user who numbers the samples says
    that two equal texts are two samples; so does the preference pair that a sample is of. Label, metadata, file and row
    do not count: they describe a sample and may be corrected or moved, and a second ingest must then find the sample
    again.

    Each part is written with its length before it, so no two contents share an encoding ("ab" + "c", "a" + "bc").
    The result is stored: changing the encoding makes every store ingest its data a second time.
    """
    parts: list[str | None]
    if sample.messages is not None:
        parts = ["messages", _canonical(sample.messages)]
        if sample.tools:
            parts += ["tools", _canonical(sample.tools)]
    elif sample.text is not None:
        parts = ["text", sample.text]
    else:
        parts = ["prompt", sample.prompt, "response", sample.response]
    for image in sample.images:
        parts += ["image", image.sha256]
    if sample.key is not None:
        parts += ["key", sample.key]
    if sample.pair is not None:
        parts += ["pair", *sample.pair]
    digest = blake2b(digest_size=HASH_BYTES, person=b"curator-sample-1")
    for part in parts:
        assert part is not None, "a sample holds text, prompt and response, or messages"
        encoded = part.encode("utf-8")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()


def _canonical(value: Any) -> str:
    """JSON in one way of writing it; the order of an object's names is no content."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
