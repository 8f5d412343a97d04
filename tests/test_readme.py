"""The README says what is so: every command and option of it exists, and its self-contained code runs."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from curator import Curator, demo
from curator.cli.main import cli
from tests.stores import CORPUS, NAMED, write_jsonl

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands() -> dict[str, click.Command]:
    """Every command by its words: "ingest", "db upgrade" ..."""
    found: dict[str, click.Command] = {}
    for name, command in cli.commands.items():
        found |= {f"{name} {sub}": c for sub, c in command.commands.items()} if isinstance(command, click.Group) else {}
        found[name] = command
    return found


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"`curator {name}" in README


@pytest.mark.parametrize("name", commands())
def test_every_command_says_what_it_does(name: str) -> None:
    assert commands()[name].help


def test_every_option_shown_in_the_readme_exists() -> None:
    known = {option for command in commands().values() for parameter in command.params for option in parameter.opts}
    known |= {"--help", "--remote-name-all"}  # the latter is of curl
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= known | {"--model", "--train", "--test"}


def test_the_code_that_needs_only_index_runs() -> None:
    blocks = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "from index import" in block]
    assert len(blocks) == 1
    exec(blocks[0], {})


def test_the_worked_example_of_audits_runs(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, on the store that scripts/demo makes."""
    section = README.split("## Audit")[1].split("\n## ")[0]
    block = re.findall(r"```bash\n(.*?)```", section, re.S)[0].replace("\\\n", " ")
    monkeypatch.chdir(tmp_path)
    with Curator.open("demo-store", device="cpu") as curator:
        curator.ingest(demo.CORPUS, model=str(demo.MODEL), dataset="demo", **NAMED)
        for line in block.splitlines():
            words = shlex.split(line.replace("curator/demo/", f"{ROOT}/curator/demo/"), comments=True)
            assert words[0] == "curator"
            code, _, err = run(*words[1:])
            assert code == 0, err
        wrong = [item.meta["is_wrong"] for item in curator.audit_mislabeled(limit=90).items]
        assert (sum(wrong[:50]), sum(wrong)) == tuple(map(int, re.findall(r"(\d+) of the worst", section)))
        assert curator.notes() == []
        assert curator.tags() == [{"tag": "suspect", "samples": 50}]


def test_the_worked_example_on_real_data_runs(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, with files of the same columns in the place of those that it downloads."""
    section = README.split("## On real data")[1].split("\n## ")[0]
    block = re.findall(r"```bash\n(.*?)```", section, re.S)[0]
    monkeypatch.chdir(tmp_path)
    rows = [{"question": row["prompt"], "answer": row["response"]} for row in CORPUS]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "percent.jsonl", rows[:9])
    for line in block.splitlines():
        words = shlex.split(line.replace("$MODEL", str(demo.MODEL)), comments=True)
        if words and words[0] == "curator":
            code, _, err = run(*words[1:])
            assert code == 0, err
        else:
            assert not words or words[0] in ("curl", "export", "grep")
    assert len((tmp_path / "percent-train.jsonl").read_text().splitlines()) == round(len(rows) / 10)
    assert "<html" in (tmp_path / "why.html").read_text()
