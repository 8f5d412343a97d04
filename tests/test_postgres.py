"""PostgreSQL holds the metadata as SQLite does: the same commands, the same answers."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from curator import Curator, demo
from curator.errors import CuratorError, LockedError
from curator.metadata import database
from tests.models.templates import CHATML
from tests.stores import CORPUS, NAMED, QUESTION, VALIDATION, contents, write_jsonl

pytestmark = pytest.mark.postgres


def find_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server of its own on 127.0.0.1, gone with the tests; the URL without the database's name."""
    pytest.importorskip("psycopg")
    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed")
    is_root = os.geteuid() == 0  # which initdb refuses to be
    if is_root and subprocess.run(["id", "postgres"], capture_output=True, check=False).returncode:
        pytest.skip("a PostgreSQL server needs another user than root")
    as_user = ["runuser", "-u", "postgres", "--"] if is_root else []
    folder = Path(tempfile.mkdtemp(prefix="curator-pg-"))
    if is_root:
        shutil.chown(folder, "postgres")

    def run(*command: str) -> None:
        done = subprocess.run(
            [*as_user, *command], cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
        )
        assert done.returncode == 0, (folder / "log").read_text()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "log").open("w") as log:
        data = str(folder / "data")
        run(str(programs / "initdb"), "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")
        settings = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {folder}"
        run(
            str(programs / "pg_ctl"),
            "-D",
            data,
            "-o",
            settings,
            "-w",
            "-l",
            str(folder / "data" / "server.log"),
            "start",
        )
        try:
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}"
        finally:
            run(str(programs / "pg_ctl"), "-D", data, "-m", "immediate", "-w", "stop")
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def url(server: str, request: pytest.FixtureRequest) -> str:
    """A database of the test's own."""
    name = f"test_{abs(hash(request.node.name))}"
    engine = sa.create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"create database {name}"))
    engine.dispose()
    return f"{server}/{name}"


def test_the_schema_is_what_the_tables_say(url: str):
    engine = database.connect(url)
    database.upgrade(engine)
    assert database.check_schema(engine) == []
    assert database.current_revision(engine) == database.head_revision()
    engine.dispose()


def rounded(value: Any) -> Any:
    """Without times, and floats to nine places, at any depth: the databases add up in another order."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items() if key not in ("created_at", "since", "undone_at")}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return round(value, 9) if isinstance(value, float) else value


def session_of(curator: Curator, folder: Path) -> dict[str, Any]:
    """A day in the life of a store; everything that a caller sees of it."""
    seen: dict[str, Any] = {}
    data = write_jsonl(folder / "a.jsonl", [*CORPUS[:30], {"prompt": "x"}, {**CORPUS[40], "id": CORPUS[0]["id"]}])

    def look(at: str) -> None:
        seen[at] = {
            "values": contents(curator),
            "filtered": [
                [row["id"] for row in curator.values(**QUESTION, where=where)]
                for where in (
                    'label = "capital" or is_wrong = true',
                    'not (text contains "CAPITAL") and num_tokens >= 15',
                    'meta.is_wrong != true and dataset in ["demo"] and loss < 1.5',
                    'key > "g" and label is not null',
                )
            ],
            "query": [item.to_dict() for item in curator.query(**VALIDATION, where="id > 3").helpful],
            "quarantined": curator.quarantined(),
            "status": [rounded(row) for kind in ("spaces", "datasets") for row in curator.status()[kind]],
            "verify": curator.verify(),
        }

    def add(**options: Any) -> None:
        report = curator.ingest(data, dataset="demo", **NAMED, segment_samples=8, **options).to_dict()
        seen.setdefault("reports", []).append({k: v for k, v in report.items() if not k.endswith("seconds")})

    add(model=str(demo.MODEL))
    look("ingested")
    seen["marked"] = [
        curator.tag("wrong", where="is_wrong = true"),
        curator.tag("low", **VALIDATION, harmful=3),
        curator.untag("wrong", where='tag = "wrong" and id > 9'),
        curator.note(3, "look again"),
        curator.undo(1 + 2),
    ]
    seen["tagged"] = [
        [row["id"] for row in curator.values(**QUESTION, where=where)]
        for where in ('tag in ["wrong", "low"]', 'tag contains "LO"', "tag is null", 'note contains "again"')
    ]
    seen["lists"] = [curator.tags(), curator.notes(), curator.changes()]
    seen["audits"] = [
        [item.id for item in result.items]
        for result in (curator.audit_mislabeled(), curator.audit_duplicates(), curator.audit_outliers())
    ]
    seen["deleted"] = curator.delete("is_wrong = true or id = 2")
    look("deleted")
    compacted = curator.compact()
    seen["compacted"] = compacted
    seen["restored"] = curator.restore("id < 5")
    seen["undone"] = curator.undo()
    seen["restored again"] = curator.restore("id < 5")
    look("compacted")
    write_jsonl(data, [{**CORPUS[0], "task": "new"}, *CORPUS[1:32]])
    add()
    look("again")
    return seen


@pytest.mark.slow
def test_every_answer_is_the_one_of_sqlite(url: str, tmp_path: Path):
    with Curator.open(tmp_path / "sqlite", device="cpu") as curator:
        expected = session_of(curator, tmp_path)
    with Curator.open(tmp_path / "postgres", device="cpu", database_url=url) as curator:
        found = session_of(curator, tmp_path)
    assert expected["ingested"]["verify"]["problems"] == []
    assert all(expected["ingested"]["filtered"])
    assert expected["deleted"] != expected["ingested"]
    assert all(expected["tagged"])
    assert rounded(found) == rounded(expected)
    assert not (tmp_path / "postgres" / "curator.db").exists()


def test_the_environment_names_the_database(url: str, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CURATOR_DATABASE_URL", url)
    store = ["--store", str(tmp_path / "store")]
    data = write_jsonl(tmp_path / "a.jsonl", CORPUS[:5])
    columns = ["--prompt-field", "prompt", "--response-field", "response"]
    assert run("ingest", str(data), *store, "--dataset", "d", "--model", str(demo.MODEL), *columns)[0] == 0
    assert run("verify", *store)[1].endswith(": sound\n")
    assert run("db", "check", *store)[0] == 0
    assert run("query", *store, "--text", "a b c", "--json")[0] == 0
    monkeypatch.delenv("CURATOR_DATABASE_URL")
    code, _, err = run("verify", *store)
    assert (code, "set CURATOR_DATABASE_URL" in err) == (2, True)


def test_one_writes_and_others_ask(url: str, tmp_path: Path):
    seen: list[int] = []

    def meanwhile(progress: Any) -> None:
        if progress.committed == 4 and not seen:
            with Curator.open(tmp_path / "store", device="cpu", database_url=url) as other:
                with pytest.raises(LockedError):
                    other.delete("id > 0")
                seen.append(len(contents(other)))

    with Curator.open(tmp_path / "store", device="cpu", database_url=url) as curator:
        data = write_jsonl(tmp_path / "a.jsonl", CORPUS[:8])
        curator.ingest(
            data, dataset="d", model=str(demo.MODEL), **NAMED, segment_samples=4, on_progress=meanwhile
        )  # fmt: skip
        assert (seen in ([4], [8]), len(contents(curator))) == (True, 8)


def test_a_server_that_does_not_answer_is_one_clear_error(tmp_path: Path):
    pytest.importorskip("psycopg")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"postgresql+psycopg://someone:secret@127.0.0.1:{free.getsockname()[1]}/x"
        with pytest.raises(CuratorError, match="cannot be opened") as caught:
            Curator.open(tmp_path / "store", database_url=url)
    assert "secret" not in str(caught.value)


def test_conversations_and_pairs_are_the_same_there(url: str, tmp_path: Path):
    (tmp_path / "t.jinja").write_text(CHATML, "utf-8")
    turns = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": f"{row['response']} \u00e9"}]
        for row in CORPUS[:10]
    ]
    write_jsonl(tmp_path / "chat.jsonl", [*({"messages": one, "n": 1} for one in turns), {"messages": []}])
    pair = {"prompt": "x", "chosen": " yes", "rejected": " no"}
    refused = {"prompt": "so " * 2_000, "chosen": " yes", "rejected": " no"}  # too long, both
    write_jsonl(tmp_path / "pairs.jsonl", [pair, refused])
    seen = []
    for name, where in (("sqlite", None), ("postgres", url)):
        with Curator.open(tmp_path / name, device="cpu", database_url=where) as curator:
            asked = {"model": str(demo.MODEL), "chat_template": tmp_path / "t.jinja"}
            curator.ingest(tmp_path / "chat.jsonl", dataset="chat", **asked)
            curator.ingest(tmp_path / "pairs.jsonl", dataset="pairs")
            curator.delete('key = "chat:3"')
            curator.compact()
            curator.save_query("pairs", data=tmp_path / "pairs.jsonl")
            answer = curator.query(saved="pairs", exact=True, where='text contains "\u00e9"')
            curator.select(saved="pairs", count=20, out=tmp_path / f"{name}.jsonl")
            items = [(item.id, item.key, item.text, round(item.value, 6)) for item in answer.helpful]
            bad = [(row["dataset"], row["row"], row["reason"]) for row in curator.quarantined()]
            rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines()]
            assert curator.verify()["problems"] == []
            seen.append((items, bad, [(row.get("messages"), row.get("prompt"), row["rank"]) for row in rows]))
    assert seen[0] == seen[1]
    assert len(seen[0][0]) == 9
    assert [(name, row) for name, row, _ in seen[0][1]] == [("chat", 10), ("pairs", 1)]
    assert sum(messages in turns for messages, _, _ in seen[0][2]) == 9
