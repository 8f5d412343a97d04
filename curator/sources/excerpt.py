"""The first characters of a bad row, safe to store and to print."""

__all__ = ["MAX_EXCERPT", "excerpt_of"]

MAX_EXCERPT = 200


def excerpt_of(data: bytes | str) -> str:
    """At most MAX_EXCERPT characters on one line, valid Unicode, without control characters."""
    if isinstance(data, bytes):
        # Four bytes are the most that one character takes. Cutting first keeps a huge line cheap.
        text = data[: 4 * MAX_EXCERPT].decode("utf-8", "replace")
    else:
        text = data[: 4 * MAX_EXCERPT].encode("utf-8", "replace").decode("utf-8")
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= MAX_EXCERPT else text[: MAX_EXCERPT - 1] + "…"
