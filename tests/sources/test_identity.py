"""Equal content, and nothing else, makes two samples one."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from curator.sources import content_hash
from curator.types import Sample

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
    ]
    assert len({content_hash(sample) for sample in samples}) == len(samples)


def test_label_metadata_and_place_do_not_count() -> None:
    sample = Sample(text="abc", key="k")
    described = dataclasses.replace(sample, label="x", meta={"a": 1}, source="/data/a.jsonl", row=9)
    assert content_hash(described) == content_hash(sample)
