"""What may reach a terminal: a corpus must not be able to drive it."""

__all__ = ["printable"]


def printable(text: str) -> str:
    """The text on one line, other control characters replaced."""
    return "".join(c if c.isprintable() else {"\n": "⏎", "\t": " "}.get(c, "�") for c in text)
