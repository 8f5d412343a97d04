"""Equal content, and nothing else, makes two samples one."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from curator.sources import content_hash
from curator.types import Sample

ASKED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "é"}]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
CONTENTS = st.one_of(
    st.builds(Sample, text=TEXT, key=st.none() | TEXT),
    st.builds(Sample, prompt=TEXT, response=TEXT, key=st.none() | TEXT),
)


def test_the_hash_is_the_one_that_stores_hold() -> None:
    assert content_hash(Sample(text="hello")).hex() == "5d2cccef9537dc03f20f2af8c08c117b"
    assert content_hash(Sample(prompt="2+2=", response="4", key="k")).hex() == "8663e0928c77902dc960f1aef993cb15"


@given(CONTENTS, CONTENTS)
def test_hashes_are_equal_exactly_where_contents_are(first: Sample, second: Sample) -> None:
    assert (content_hash(first) == content_hash(second)) == (first == second)
    assert len(content_hash(first)) == 16


def test_the_split_counts() -> None:
    samples = [
        Sample(text="abc"),
        Sample(prompt="ab", response="c"),
        Sample(prompt="a", response="bc"),
        Sample(prompt="", response="abc"),
        Sample(text="abc", key=""),
        Sample(text="ab", key="c"),
        Sample(text="textabc"),
        Sample(messages=ASKED),
        Sample(messages=ASKED[::-1]),
        Sample(messages=ASKED, key="c"),
        Sample(messages=ASKED, tools=[{"name": "add"}]),
        Sample(text=Sample(messages=ASKED).full_text),
    ]
    assert len({content_hash(sample) for sample in samples}) == len(samples)


def test_the_order_of_names_in_a_turn_does_not_count() -> None:
    turned = [dict(reversed(turn.items())) for turn in ASKED]
    assert content_hash(Sample(messages=turned)) == content_hash(Sample(messages=ASKED))
    assert content_hash(Sample(messages=ASKED)).hex() == "92b5f5e19c2ec8c82c08c02ede6ac586"


def test_label_metadata_and_place_do_not_count() -> None:
    sample = Sample(text="abc", key="k")
    described = dataclasses.replace(sample, label="x", meta={"a": 1}, source="/data/a.jsonl", row=9)
    assert content_hash(described) == content_hash(sample)
