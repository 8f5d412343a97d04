"""Where a row's images are: bytes in a cell, paths beside the data file, parts of a conversation.

    {"bytes": ..., "path": ...}     as Hugging Face datasets keep them in Parquet; bytes alone, too
    "pictures/17.png"               below the folder of the data file, and nowhere else: a row must not name any file
    "data:image/png;base64,..."     inline
    [..., ...]                      several of these

In a conversation, image parts with an image of their own ({"type": "image_url", "image_url": {"url": ...}}, {"type":
"image", "image": ...}) hold it; the others take the images of the column in order. Nothing is fetched from a network.

Bytes leave their place and a mark stays, by which an export puts them back.
"""

import base64
import binascii
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from curator.sources.excerpt import excerpt_of
from curator.sources.images import MAX_BYTES
from curator.sources.values import BadValueError, kind_of
from curator.types import Image, Message

__all__ = ["PLACEHOLDER", "SHA256", "images_of", "marked", "placed", "restored", "take_parts"]

PLACEHOLDER = "<image>"  # in text: an image of the column stands here
SHA256 = "image_sha256"  # the mark of bytes that were taken out
_URI = "data_uri"  # beside it, of a data URI: all that comes before the base64 text
_OWN = ("image", "image_url", "url", "path", "bytes", "data")  # where a part of a conversation may hold its image


def images_of(value: Any, source: str) -> list[Image]:
    """The images of a cell; none where it is empty. Raises BadValueError."""
    if value is None or value == "":
        return []
    if isinstance(value, list | tuple):
        return [_image(item, source) for item in value]
    return [_image(value, source)]


def _image(value: Any, source: str) -> Image:
    if isinstance(value, dict):
        kept = [value[name] for name in ("bytes", "url", "path", "file_name") if value.get(name) is not None]
        if not kept:
            raise BadValueError("no image: the object has neither bytes nor a path")
        value = kept[0]
    if isinstance(value, bytes | bytearray | memoryview):
        return Image.of(bytes(value))
    if not isinstance(value, str):
        raise BadValueError(f"not an image: {kind_of(value)}, and bytes or a path are needed")
    if value.startswith("data:"):
        return Image.of(_from_uri(value))
    return _from_path(value, source)


def _from_uri(value: str) -> bytes:
    head, comma, body = value.partition(",")
    if not comma or not head.endswith(";base64"):
        raise BadValueError("not an image: a data URI must be base64")
    if len(body) > MAX_BYTES * 4 // 3 + 4:
        raise BadValueError(f"image too large: a data URI of {len(body):,} characters")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadValueError(f"not an image: broken base64 ({error})") from error


def _from_path(value: str, source: str) -> Image:
    shown = excerpt_of(value)
    if "://" in value:
        raise BadValueError(f"image not local: {shown} is not fetched; download it and give its path")
    folder = os.path.realpath(os.path.dirname(source))
    path = os.path.realpath(os.path.join(folder, value)) if "\0" not in value else folder
    if os.path.commonpath([folder, path]) != folder or not os.path.isabs(source):
        raise BadValueError(f"image outside of the data's folder: {shown}; put it below {folder}")
    try:
        # Not blocking: a pipe would never end.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadValueError(f"not an image: {shown} is no regular file")
            if status.st_size > MAX_BYTES:
                raise BadValueError(
                    f"image too large: {shown} has {status.st_size:,} bytes, the limit is {MAX_BYTES:,}"
                )
            image = Image.of(file.read())
    except OSError as error:
        raise BadValueError(f"image missing: {shown} cannot be read ({error.strerror})") from error
    return Image(image.sha256, path=path)


def take_parts(messages: list[Message], column: list[Image], source: str) -> list[Image]:
    """The images of a conversation in order: of its image parts, and of the column for those parts that hold none.

    Raises BadValueError unless there is one for each part, and a part for each.
    """
    found: list[Image] = []
    waiting = iter(column)
    parts = [part for message in messages for part in _image_parts(message)]
    for part in parts:
        own = next((part[name] for name in _OWN if part.get(name) is not None), None)
        image = _image(own, source) if own is not None else next(waiting, None)
        if image is None:
            raise BadValueError(f"image count: {len(parts)} image parts, and {len(column)} images for them")
        found.append(image)
    if next(waiting, None) is not None:
        raise BadValueError(f"image count: {len(column)} images, and the conversation has fewer places for them")
    return found


def _image_parts(message: Message) -> Iterator[dict[str, Any]]:
    content = message.get("content")
    if isinstance(content, list):
        yield from (part for part in content if part["type"] == "image")


def placed(messages: list[Message], num_images: int) -> list[Message]:
    """A conversation with parts for the images of a column: where its text says <image>, else before the first user
    turn; unchanged where it has image parts."""
    if not num_images or any(True for message in messages for _ in _image_parts(message)):
        return messages
    text = "".join(message["content"] for message in messages if isinstance(message["content"], str))
    if PLACEHOLDER in text:
        return [message | {"content": _split(message["content"])} for message in messages]
    first = next((at for at, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None:
        return messages
    images = [{"type": "image"}] * num_images
    said = [*images, {"type": "text", "text": messages[first]["content"]}]
    return [*messages[:first], messages[first] | {"content": said}, *messages[first + 1 :]]


def _split(content: str) -> str | list[dict[str, Any]]:
    if PLACEHOLDER not in content:
        return content
    parts: list[dict[str, Any]] = []
    for number, text in enumerate(content.split(PLACEHOLDER)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": text}] if text else []
    return parts


def marked(value: Any) -> Any:
    """The value with a mark {"image_sha256", "num_bytes"} in the place of every image's bytes."""
    if isinstance(value, bytes | bytearray | memoryview):
        return _mark(bytes(value))
    if isinstance(value, str) and value.startswith("data:image/") and ";base64," in value[:100]:
        try:
            return _mark(_from_uri(value)) | {_URI: value[: value.index(",") + 1]}
        except BadValueError:
            return value  # text that only begins like one: an image would have been refused before
    if isinstance(value, dict):
        return {name: marked(item) for name, item in value.items()}
    return [marked(item) for item in value] if isinstance(value, list | tuple) else value


def _mark(data: bytes) -> dict[str, Any]:
    return {SHA256: Image.of(data).sha256, "num_bytes": len(data)}


def restored(value: Any, read: Callable[[str], bytes], *, as_text: bool) -> Any:
    """The value with the bytes back in their places; as a data URI where only text can be written."""
    if isinstance(value, dict) and {SHA256, "num_bytes"} <= value.keys() <= {SHA256, "num_bytes", _URI}:
        data = read(value[SHA256])
        if _URI in value or as_text:
            return value.get(_URI, "data:;base64,") + base64.b64encode(data).decode()
        return data
    if isinstance(value, dict):
        return {name: restored(item, read, as_text=as_text) for name, item in value.items()}
    return [restored(item, read, as_text=as_text) for item in value] if isinstance(value, list) else value
