"""The command line: help everywhere, data on stdout, and every error one line with its exit code."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy as sa

from curator import Curator, demo
from curator.cli.ingest import _Reporter
from curator.cli.main import cli
from curator.ingest.report import Progress
from curator.metadata import database
from curator.store import Store
from tests.stores import CORPUS, FIELDS, QUESTION, SIZE, add, write_jsonl

Run = Callable[..., tuple[int, str, str]]
ASK = ("--prompt", QUESTION["prompt"], "--response", QUESTION["response"])
COLUMNS = ("--prompt-field", "prompt", "--response-field", "response")


def commands(group: click.Group = cli, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found.append((*prefix, name))
        if isinstance(command, click.Group):
            found += commands(command, (*prefix, name))
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_has_help(run: Run, words: tuple[str, ...]):
    for flag in ("--help", "-h"):
        code, out, err = run(*words, flag)
        assert (code, err) == (0, "")
        assert out.startswith("Usage: ")
    command: Any = cli
    for word in words:
        command = command.commands[word]
    assert command.help
    for option in command.params:
        assert not isinstance(option, click.Option) or option.help, f"{' '.join(words)} {option.name} has no help"


def test_the_version_is_that_of_the_package(run: Run):
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("curator, version 0.")


ERRORS: dict[str, tuple[list[str], int, str]] = {
    "missing store": (["query", "--store", "{tmp}/none", *ASK], 4, "no store at"),
    "no store given": (["query", *ASK], 2, "Missing option '--store'"),
    "missing query file": (["query", "--store", "{store}", "--data", "{tmp}/none.jsonl"], 4, "does not exist"),
    "wrong query column": (["query", "--store", "{store}", "--data", "{data}", "--text-field", "x"], 2, 'no field "x"'),
    "bad filter": (["query", "--store", "{store}", *ASK, "--where", "label ="], 2, "character 8"),
    "unknown field": (["values", "--store", "{store}", *ASK, "--where", "labl = 1"], 2, "labl"),
    "no query": (["query", "--store", "{store}"], 2, "a query is one of"),
    "two queries": (["values", "--store", "{store}", *ASK, "--text", "x"], 2, "a query is one of"),
    "unknown space": (["query", "--store", "{store}", "--space", "zz", *ASK], 4, "no space with fingerprint"),
    "bad device": (["query", "--store", "{store}", "--device", "cuda:7", *ASK], 1, "cannot be used here"),
    "no device": (["query", "--store", "{store}", "--device", "abacus", *ASK], 1, "cannot be used here"),
    "bad number": (["query", "--store", "{store}", "--top", "-1", *ASK], 2, "--top"),
    "bad choice": (["query", "--store", "{store}", "--method", "best", *ASK], 2, "--method"),
    "bad damping": (["query", "--store", "{store}", "--damping", "0", *ASK], 2, "damping must be above 0"),
    "unknown command": (["queri"], 2, "No such command 'queri'"),
    "unknown option": (["status", "--stor", "x"], 2, "--stor"),
    "bad output": (["values", "--store", "{store}", *ASK, "--out", "{tmp}/v.txt"], 2, ".jsonl or .parquet"),
    "no output": (["values", "--store", "{store}", *ASK, "--out", "{tmp}/none/v.jsonl"], 1, "cannot be written"),
    "empty delete": (["delete", "--store", "{store}", "--where", " "], 2, "an empty filter"),
    "missing data": (["ingest", "{tmp}/none.jsonl", "--store", "{store}", "--dataset", "d"], 4, "does not exist"),
    "wrong column": (
        ["ingest", "{data}", "--store", "{store}", "--dataset", "d", "--text-field", "x"], 2, "none of the first"
    ),
    "wrong shape": (
        ["ingest", "{data}", "--store", "{store}", "--dataset", "d", "--shape", "preference"], 2, "--messages-field"
    ),
    "no template": (
        ["ingest", "{data}", "--store", "{store}", "--dataset", "d", *COLUMNS, "--shape", "chat"], 2, "--chat-template"
    ),
    "template that is not there": (
        ["ingest", "{data}", "--store", "{store}", "--dataset", "d", "--chat-template", "{tmp}/x"], 4, "no chat templ"
    ),
    "half a pair": (
        ["ingest", "{data}", "--store", "{store}", "--dataset", "d", "--prompt-field", "prompt"], 2, "--response-field"
    ),
    "no model": (["ingest", "{data}", "--store", "{tmp}/new", "--dataset", "d", *COLUMNS], 2, "--model is needed"),
    "unknown model": (
        ["ingest", "{data}", "--store", "{tmp}/new", "--dataset", "d", *COLUMNS, "--model", "{tmp}/none"],
        4, "no model directory",
    ),
    "no model in it": (
        ["ingest", "{data}", "--store", "{tmp}/new", "--dataset", "d", *COLUMNS, "--model", "{tmp}"], 1, "no weights"
    ),
    "other suffix": (["ingest", __file__, "--store", "{store}", "--dataset", "d"], 2, "suffix"),
    "other use": (["ingest", "{data}", "--store", "{used}", "--dataset", "d", *COLUMNS], 2, "holds no store"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_one_line_with_its_exit_code(built: Path, tmp_path: Path, run: Run, name: str):
    arguments, expected, message = ERRORS[name]
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    data = write_jsonl(tmp_path / "data.jsonl", CORPUS[:3])
    places = {"tmp": tmp_path, "store": built, "data": data, "used": tmp_path / "used"}
    code, out, err = run(*(word.format(**places) for word in arguments))
    assert (code, out) == (expected, ""), err
    assert err.startswith("curator: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_store_that_cannot_be_trusted_ends_with_its_exit_code(store: Path, run: Run):
    factors = sorted(store.glob("segments/*/factors.safetensors"))[0]
    factors.write_bytes(factors.read_bytes()[:-1] + b"\xff")
    code, out, err = run("verify", "--store", str(store))
    assert (code, err) == (5, "")
    assert str(factors) in out
    factors.unlink()
    code, out, err = run("query", "--store", str(store), *ASK)
    assert (code, out) == (5, "")
    assert err.endswith("run: curator verify\n")
    (store / "FORMAT_VERSION").write_text('{"format": 9, "database": "sqlite"}')
    assert run("status", "--store", str(store))[0] == 1
    (store / "FORMAT_VERSION").write_text("?")
    assert run("status", "--store", str(store))[0] == 5


def test_a_newer_schema_is_refused(store: Path, run: Run):
    opened = Store(store)
    with opened.engine.begin() as connection:
        connection.execute(sa.text("update alembic_version set version_num = '9999'"))
    opened.close()
    for words in (["status"], ["query", *ASK], ["db", "upgrade"]):
        code, out, err = run(*words, "--store", str(store))
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "9999 is newer" in err
    assert run("db", "current", "--store", str(store))[:2] == (0, f"9999 (newest: {database.head_revision()})\n")


def test_a_session_from_ingest_to_compact(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CURATOR_STORE", str(tmp_path / "store"))
    data = write_jsonl(tmp_path / "data.jsonl", [*CORPUS[:5], {"prompt": "x"}])
    ingest = ["ingest", str(data), "--dataset", "d", "--model", str(demo.MODEL), *COLUMNS, "--device", "cpu"]
    code, out, err = run(*ingest)
    assert code == 3
    assert out.startswith("dataset d: 5 samples added, 5 in all\n6 rows read as prompt: 6 prompts")
    assert err.count("\n") == 1
    assert run("quarantined")[1] == f'{data}:5  no field "response": the row has "prompt"\n'
    assert run("quarantined", "--dataset", "other") == (0, "", "curator: nothing in quarantine\n")
    write_jsonl(data, CORPUS[:6])
    assert run(*ingest)[0] == 0
    code, out, _ = run("query", *ASK)
    assert code == 0
    assert "most helpful" in out
    assert "Ottawa" in out
    assert run("delete", "--where", "id = 2", "--json") == (0, '{"deleted": 1}\n', "")
    assert run("restore", "--where", "id = 2") == (0, "1 samples restored\n", "")
    assert run("delete", "--where", "id = 2")[1] == "1 samples deleted\n"
    assert run("compact")[1].startswith("2 segments became 1; 1 deleted samples")
    assert json.loads(run("restore", "--where", "id = 2", "--json")[1]) == {
        "restored": 0,
        "to_ingest_again": 1,
        "key_taken": 0,
    }
    assert run("verify")[1].endswith(": sound\n")
    assert "5 samples (0 deleted" in " ".join(run("status")[1].split())
    assert run("db", "check") == (0, "", "the schema is in step\n")
    head = database.head_revision()
    assert run("db", "upgrade") == (0, f"{head} -> {head}\n", "")


def test_notes_never_mix_with_data(asked: Curator, run: Run):
    code, out, err = run("query", "--store", str(asked.path), "--text", "zq xj vw kk zq", "--json")
    assert code == 0
    assert set(json.loads(out)) == {"query", "helpful", "harmful", "how"}
    assert err.startswith("curator: the sketch sees only")


NASTY = "\x1b[31mred\x1b[0m \x9b2J \x07bell\r back\x7f \x1b]0;title\x07 [bold]plain[/bold] [/]"


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    """A store whose every text wants to drive the terminal."""
    rows = [
        {"prompt": row["prompt"] + NASTY, "response": row["response"] + NASTY, "id": row["id"] + NASTY, "l": NASTY}
        for row in CORPUS[:4]
    ]
    rows += [rows[0] | {"prompt": "another"}, {NASTY: 1}]
    with Curator.open(tmp_path / "store", device="cpu") as curator:
        add(curator, tmp_path / "a.jsonl", rows, dataset="d [bold]ata[/bold]", id_field="id", label_field="l")
    return tmp_path / "store"


def test_no_text_of_the_corpus_drives_the_terminal(nasty: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    store = ["--store", str(nasty)]
    shown = [
        run("query", *store, *ASK),
        run("query", *store, "--prompt", NASTY, "--response", NASTY),
        run("query", *store, "--data", str(nasty.parent / "a.jsonl"), *COLUMNS),
        run("query", *store, "--data", str(nasty.parent / "a.jsonl"), *COLUMNS, "--each"),
        run("status", *store),
        run("quarantined", *store),
        run("query", *store, *ASK, "--where", f"`{NASTY}` = 1"),
        run("query", *store, "--data", f"{NASTY}.jsonl"),
        run("ingest", str(nasty.parent / "a.jsonl"), *store, "--dataset", f"e{NASTY}", "--id-field", "id", *COLUMNS),
    ]
    assert [code for code, _, _ in shown] == [0, 0, 0, 0, 0, 0, 2, 4, 2]
    for _, out, err in shown:
        assert {c for c in out + err if not c.isprintable()} <= {"\n"}
    assert "[bold]plain[/bold]" in shown[0][1] + shown[1][1]


@pytest.mark.slow
def test_a_reader_that_stops_early_is_no_failure(built: Path):
    command = [sys.executable, "-m", "curator", "values", "--store", str(built), "--text", "a b c", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() in (0, 1)


HEAVY = ("torch", "transformers", "faiss", "pyarrow", "alembic", "sqlalchemy", "numpy", "rich")


def imported_by(*words: str) -> list[str]:
    """Which of the heavy libraries a command has imported when it ends, in a process of its own."""
    code = f"""
import atexit, sys
atexit.register(lambda: print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr))
sys.argv = ["curator", *{list(words)}]
from curator.cli.main import main
main()"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()[-1].split()


@pytest.mark.parametrize(
    "words", [("--help",), ("--version",), ("ingest", "--help"), ("query", "--help")], ids=" ".join
)
def test_help_imports_nothing_heavy(words: tuple[str, ...]):
    assert imported_by(*words) == []


def test_importing_the_package_imports_nothing_heavy():
    check = f"import sys, curator; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "words", [("status", "--json"), ("quarantined",), ("delete", "--where", "id = 0"), ("db", "current")], ids=" ".join
)
def test_what_reads_only_the_database_imports_no_torch(store: Path, words: tuple[str, ...]):
    assert set(imported_by(*words, "--store", str(store))) <= {"sqlalchemy", "numpy"}


def test_an_unforeseen_failure_is_one_line_too(built: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(Curator, "status", fail)
    assert run("status", "--store", str(built)) == (
        1,
        "",
        "curator: KeyError: 'lost' (a defect of curator; CURATOR_DEBUG=1 shows where)\n",
    )
    monkeypatch.setenv("CURATOR_DEBUG", "1")
    monkeypatch.setattr("sys.argv", ["curator", "status", "--store", str(built)])
    from curator.cli.main import main

    with pytest.raises(KeyError, match="lost"):
        main()


def test_progress_goes_to_stderr_and_only_when_it_takes_long(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("curator.cli.ingest._SECONDS_BETWEEN_LINES", 0.0)
    data = write_jsonl(tmp_path / "data.jsonl", CORPUS[:5])
    command = ["ingest", str(data), "--store", str(tmp_path / "s"), "--dataset", "d", *COLUMNS, "--json"]
    code, out, err = run(*command, "--model", str(demo.MODEL))
    assert code == 0
    assert json.loads(out)["added"] == 5
    lines = err.splitlines()
    assert lines[0].startswith("calibrating: ")
    assert lines[-1].startswith("ingesting: 5 of 5 rows")
    assert run(*command, "--quiet")[2] == ""


def test_an_interrupted_ingest_says_that_it_can_go_on(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    data = write_jsonl(tmp_path / "data.jsonl", CORPUS[:5])
    command = ["ingest", str(data), "--store", str(tmp_path / "s"), "--dataset", "d", *COLUMNS]
    monkeypatch.setattr("curator.ingest.segment_writer.commit_segment", interrupt)
    code, out, err = run(*command, "--model", str(demo.MODEL))
    assert code == 130
    assert out.startswith("dataset d: 0 samples added, 0 in all")
    assert err == "curator: interrupted; what is committed is safe, the same command continues\n"
    monkeypatch.undo()
    with Curator.open(tmp_path / "s", device="cpu") as curator:
        assert curator.ingest(data, dataset="d", **FIELDS).added == 5
        assert len(list(curator.values(**QUESTION))) == 5 < SIZE


def test_the_rate_of_an_ingest_is_that_of_its_phase(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    """Not of the calibration before it, nor of the first batch, whose time nobody has measured."""
    times = iter((0.0, 20.0, 60.0, 80.0))
    monkeypatch.setattr("curator.cli.ingest.time.monotonic", lambda: next(times))
    reporter = _Reporter(quiet=False)
    for phase, samples in (("calibrating", 0), ("ingesting", 32), ("ingesting", 72)):
        reporter(Progress(phase, 100, 132, samples, 10 * samples, 0, 100 - samples, ""))
    assert capsys.readouterr().err.splitlines() == [
        "calibrating: 0 of 132 rows",
        "ingesting: 32 of 132 rows",
        "ingesting: 72 of 132 rows, 2.0 samples/s, 20 tokens/s, about 30 s left",
    ]
