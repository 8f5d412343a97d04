"""Images through the whole service: from every kind of source, through a tiny vision-language model, and back."""

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator import Curator
from curator.errors import UsageError
from tests.models.tiny import save_tiny
from tests.models.tiny_vision import png, save_vision
from tests.sources.files import write_csv, write_jsonl

NAMED = {"prompt_field": "prompt", "response_field": "response", "id_field": "id", "image_field": "image"}
ROWS = [
    {"id": f"s{number}", "prompt": "what digit?", "response": f"it is {'one' if number % 2 else 'seven'} {number}"}
    for number in range(12)
]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vision(tmp_path_factory.mktemp("vision") / "model", "smolvlm")


@pytest.fixture
def curator(tmp_path: Path) -> Iterator[Curator]:
    with Curator.open(tmp_path / "store", device="cpu") as curator:
        yield curator


def picture(number: int) -> bytes:
    """Images of several sizes; the first two are the same."""
    return png(8 + 5 * max(0, number - 1), 20, seed=max(1, number))


def with_paths(folder: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    (folder / "pictures").mkdir(parents=True)
    for number, _ in enumerate(rows):
        (folder / "pictures" / f"{number}.png").write_bytes(picture(number))
    named = [row | {"image": f"pictures/{number}.png"} for number, row in enumerate(rows)]
    return write_jsonl(folder / "rows.jsonl", named)


def with_bytes(folder: Path) -> Path:
    rows = [row | {"image": {"bytes": picture(number), "path": f"{number}.png"}} for number, row in enumerate(ROWS)]
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def with_metadata(folder: Path) -> Path:
    """As Hugging Face's ImageFolder: metadata.csv with file_name, beside the images."""
    folder.mkdir(parents=True)
    for number, _ in enumerate(ROWS):
        (folder / f"{number}.png").write_bytes(picture(number))
    write_csv(folder / "metadata.csv", [row | {"file_name": f"{number}.png"} for number, row in enumerate(ROWS)])
    return folder


def add(curator: Curator, data: Path, model: Path, **options: Any) -> Any:
    return curator.ingest(data, **({"dataset": "digits", "model": str(model), "max_length": 128} | NAMED | options))


def values(curator: Curator, **question: Any) -> dict[str, float]:
    asked = question or {"prompt": "what digit?", "response": "it is one"}
    return {row["key"]: row["value"] for row in curator.values(**asked)}


def test_every_source_makes_the_same_samples(tmp_path: Path, model: Path) -> None:
    """Bytes in Parquet, paths beside JSON lines, a folder with metadata: the same values, bit for bit."""
    found = []
    for name, make, options in (
        ("paths", with_paths, {}),
        ("bytes", with_bytes, {}),
        ("folder", with_metadata, {"image_field": "file_name"}),
    ):
        with Curator.open(tmp_path / f"store-{name}", device="cpu") as curator:
            report = add(curator, make(tmp_path / name), model, **options)
            assert (report.added, report.quarantined) == (12, 0), report.reasons
            found.append(values(curator))
    assert found[0] == found[1] == found[2]
    assert len(set(found[0].values())) == 12, "another image, another value"


def test_an_image_is_kept_once_and_the_source_is_needed_no_more(curator: Curator, tmp_path: Path, model: Path) -> None:
    add(curator, with_paths(tmp_path / "data"), model)
    question = {"prompt": "what digit?", "response": "it is one", "image": tmp_path / "data/pictures/3.png"}
    before = curator.query(**question, exact=True)
    kept = [path for path in (curator.path / "images").rglob("*") if path.is_file()]
    assert len(kept) == 11, "the first two samples share one"
    shutil.rmtree(tmp_path / "data" / "pictures")
    after = curator.query(prompt="what digit?", response="it is one", exact=True)
    assert before.helpful[0].value != after.helpful[0].value, "the query's image counts"
    assert curator.explain("s3", prompt="what digit?", response="it is one", exact=True).tokens
    assert curator.verify()["problems"] == []


def test_exact_values_are_those_of_the_sketch_and_factors(curator: Curator, tmp_path: Path, model: Path) -> None:
    add(curator, with_paths(tmp_path / "data"), model)
    asked = {"prompt": "what digit?", "response": "it is one", "top": 12}
    stored, exact = (
        {item.key: item.value for item in curator.query(**asked, exact=exact).helpful} for exact in (False, True)
    )
    largest = max(abs(value) for value in exact.values())
    assert all(abs(stored[key] - exact[key]) < 0.02 * largest for key in exact)


def test_the_same_text_with_another_image_is_another_sample(curator: Curator, tmp_path: Path, model: Path) -> None:
    rows = [{"prompt": "what digit?", "response": "it is one"} for _ in range(3)]
    report = add(curator, with_paths(tmp_path / "data", rows), model, id_field=None)
    assert (report.added, report.duplicates) == (2, 1)
    assert curator.audit_duplicates(exact=True).items == []


def test_ingesting_again_adds_nothing_and_a_changed_image_is_new(curator: Curator, tmp_path: Path, model: Path) -> None:
    data = with_paths(tmp_path / "data")
    add(curator, data, model, id_field=None)
    assert add(curator, data, model, id_field=None).present == 12
    (tmp_path / "data" / "pictures" / "4.png").write_bytes(png(30, 30, 99))
    report = add(curator, data, model, id_field=None)
    assert (report.added, report.present) == (1, 11)


def test_images_go_with_their_last_sample(curator: Curator, tmp_path: Path, model: Path) -> None:
    add(curator, with_paths(tmp_path / "data"), model)
    folder = curator.path / "images"
    (folder / "ab").mkdir(exist_ok=True)
    (folder / "ab" / ("ab" * 32)).write_bytes(b"left over")
    curator.delete(where='key in ["s0", "s5"]')
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 12
    curator.restore(where='key = "s5"')
    curator.compact()
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 11, "s1 has the image of s0; s5 is back"
    curator.delete(where='key in ["s1", "s5"]')
    curator.compact()
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 9
    assert curator.verify()["problems"] == []


def test_verify_finds_lost_and_changed_images(curator: Curator, tmp_path: Path, model: Path) -> None:
    add(curator, with_paths(tmp_path / "data"), model)
    first, second, *_ = sorted(path for path in (curator.path / "images").rglob("*") if path.is_file())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    problems = curator.verify()["problems"]
    assert len(problems) == 2
    assert "missing" in problems[0]
    assert "not those that were stored" in problems[1]


def test_a_saved_query_keeps_its_images(curator: Curator, tmp_path: Path, model: Path) -> None:
    data = with_paths(tmp_path / "data")
    add(curator, data, model)
    asked = NAMED | {"data": write_jsonl(tmp_path / "data" / "one.jsonl", [ROWS[7] | {"image": "pictures/7.png"}])}
    expected = curator.query(**asked, exact=True).helpful
    curator.save_query("seventh", **asked)
    shutil.rmtree(tmp_path / "data")
    curator.delete(where='key = "s7"')
    curator.compact()
    found = curator.query(saved="seventh", exact=True).helpful
    assert [item.value for item in found[:3]] == pytest.approx(
        [i.value for i in expected if i.key != "s7"][:3], rel=1e-5
    )


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda _: "pictures/none.png", "image missing"),
    "above": (lambda folder: (folder.parent / "out.png").write_bytes(picture(1)) and "../out.png", "image outside"),
    "absolute": (lambda _: "/etc/passwd", "image outside"),
    "link": (lambda folder: (folder / "link.png").symlink_to("/etc/passwd") or "link.png", "image outside"),
    "folder": (lambda _: "pictures", "image missing"),
    "address": (lambda _: "https://example.org/a.png", "image not local"),
    "text": (lambda folder: (folder / "a.png").write_text("<svg/>") and "a.png", "not an image that is read"),
    "number": (lambda _: 7, "not an image"),
    "two": (lambda _: ["pictures/1.png", "pictures/2.png"], ""),
    "none": (lambda _: None, ""),
    "inline": (lambda _: "data:image/png;base64," + base64.b64encode(picture(2)).decode(), ""),
    "broken inline": (lambda _: "data:image/png;base64,@@@", "not an image"),
}


def test_rows_with_bad_images_are_quarantined_with_the_reason(curator: Curator, tmp_path: Path, model: Path) -> None:
    data = with_paths(tmp_path / "data")
    with data.open("a") as file:
        for name, (make, _) in BAD.items():
            file.write(json.dumps(ROWS[0] | {"id": name, "image": make(tmp_path / "data")}) + "\n")
    report = add(curator, data, model)
    reasons = {row["row"]: row["reason"] for row in curator.quarantined()}
    for number, (name, (_, expected)) in enumerate(BAD.items(), start=len(ROWS)):
        assert (reasons.get(number, "") or "none").startswith(expected or "none"), (name, reasons.get(number))
    assert report.quarantined == sum(bool(reason) for _, reason in BAD.values())
    assert report.added == len(ROWS) + len(BAD) - report.quarantined


def test_images_for_a_model_that_reads_text_are_refused_before_anything_is_done(
    curator: Curator, tmp_path: Path
) -> None:
    text_only = save_tiny(tmp_path / "llama")
    with pytest.raises(UsageError, match="--image-field image: images: the model reads text only"):
        add(curator, with_paths(tmp_path / "data"), text_only, max_length=64)
    assert curator.status()["spaces"] == []


def test_conversations_with_images_inline_as_paths_and_in_a_column(
    curator: Curator, tmp_path: Path, model: Path
) -> None:
    with_paths(tmp_path / "data")
    uri = "data:image/png;base64," + base64.b64encode(picture(2)).decode()
    answer = {"role": "assistant", "content": "it is a one"}
    asked = {"type": "text", "text": "what digit?"}
    own = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}, asked]}, answer]}
    path = {"messages": [{"role": "user", "content": [{"type": "image", "image": "pictures/2.png"}, asked]}, answer]}
    rows = [
        own | {"image": None},
        path | {"image": None},
        {"messages": [{"role": "user", "content": [{"type": "image"}, asked]}, answer], "image": "pictures/2.png"},
        {"messages": [{"from": "human", "value": "<image>what digit?"}, {"from": "gpt", "value": "it is a one"}],
         "image": "pictures/2.png"},
        {"messages": [{"role": "user", "content": "what digit?"}, answer], "image": ["pictures/2.png"]},
        {"messages": [{"role": "user", "content": [{"type": "image"}, asked]}, answer], "image": []},
    ]  # fmt: skip
    data = write_jsonl(tmp_path / "data" / "chat.jsonl", [{"id": str(n)} | row for n, row in enumerate(rows)])
    report = curator.ingest(
        data, dataset="chat", model=str(model), messages_field="messages", image_field="image", id_field="id"
    )
    assert (report.added, report.quarantined) == (5, 1), report.reasons
    assert list(report.reasons) == ["image count"]
    found = values(curator)
    assert len({round(value, 4) for value in found.values()}) == 1, "one conversation, written in five ways"


@pytest.mark.parametrize("out", ["out.jsonl", "out.parquet", "out"])
@pytest.mark.parametrize("make", [with_paths, with_bytes])
def test_an_export_has_the_columns_of_the_source(
    curator: Curator, tmp_path: Path, model: Path, make: Callable[[Path], Path], out: str
) -> None:
    add(curator, make(tmp_path / "data"), model)
    curator.select(prompt="what digit?", response="it is one", count=5, out=tmp_path / out)
    written = tmp_path / out
    if out.endswith("jsonl"):
        rows = [json.loads(line) for line in written.read_text().splitlines()]
    else:
        rows = pq.read_table(written if written.is_file() else written / "data").to_pylist()
    for row in rows:
        number = int(row["id"][1:])
        if make is with_paths:
            assert row["image"] == f"pictures/{number}.png"
        else:
            text = "data:;base64," + base64.b64encode(picture(number)).decode()
            assert row["image"] == {
                "bytes": text if out.endswith("jsonl") else picture(number),
                "path": f"{number}.png",
            }
    if make is with_bytes:
        with Curator.open(tmp_path / "again", device="cpu") as other:
            report = add(other, written / "data" if out == "out" else written, model)
            assert (report.added, report.quarantined) == (5, 0), report.reasons
