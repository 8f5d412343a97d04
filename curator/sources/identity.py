"""What makes two samples the same sample."""

from hashlib import blake2b

from curator.types import Sample

__all__ = ["HASH_BYTES", "content_hash"]

HASH_BYTES = 16  # collisions by chance need about 2**64 samples


def content_hash(sample: Sample) -> bytes:
    """16 bytes that are equal for equal content, so that reading the same data twice adds nothing.

    Content is what the model reads, split as it is split: (text) or (prompt, response), and the user's own key where
    one is given. The key counts because a user who numbers the samples says that two equal texts are two samples.
    Label, metadata, file and row do not count: they describe a sample and may be corrected or moved, and a second
    ingest must then find the sample again.

    Each part is written with its length before it, so no two contents share an encoding ("ab" + "c", "a" + "bc").
    The result is stored: changing the encoding makes every store ingest its data a second time.
    """
    parts = ["text", sample.text] if sample.text is not None else ["prompt", sample.prompt, "response", sample.response]
    if sample.key is not None:
        parts += ["key", sample.key]
    digest = blake2b(digest_size=HASH_BYTES, person=b"curator-sample-1")
    for part in parts:
        assert part is not None, "a sample holds either text, or prompt and response"
        encoded = part.encode("utf-8")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()
