"""The README says what is so: every command and option of it exists, and its self-contained code runs."""

import re
from pathlib import Path

import click
import pytest

from curator.cli.main import cli

README = (Path(__file__).parent.parent / "README.md").read_text()


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
    known |= {"--help"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= known | {"--model", "--train", "--test"}


def test_the_code_that_needs_only_index_runs() -> None:
    blocks = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "from index import" in block]
    assert len(blocks) == 1
    exec(blocks[0], {})
