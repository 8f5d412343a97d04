"""Excerpts are short, printable and storable, whatever the row was."""

from hypothesis import given
from hypothesis import strategies as st

from curator.sources.excerpt import MAX_EXCERPT, excerpt_of


@given(st.text() | st.binary())
def test_an_excerpt_is_one_short_printable_line(data: str | bytes) -> None:
    excerpt = excerpt_of(data)
    assert len(excerpt) <= MAX_EXCERPT
    assert excerpt.isprintable()
    excerpt.encode()


def test_short_text_is_quoted_whole_and_long_text_marked() -> None:
    assert excerpt_of('{"text":\t"é"}') == '{"text": "é"}'
    assert excerpt_of("é".encode() * 500) == "é" * 199 + "…"
    assert excerpt_of("x" * 200) == "x" * 200
