"""`curator query` and `curator values`: what helps, what hurts, and the value of everything."""

import json
from pathlib import Path
from typing import Any

import click

from curator.cli.options import json_option, query_options, store_option
from curator.cli.printable import printable

__all__ = ["query", "values"]


@click.command()
@store_option
@query_options
@click.option("--top", type=click.IntRange(0, 10_000), default=10, show_default=True, help="Helpful samples to show.")
@click.option("--harmful", type=click.IntRange(0, 10_000), default=10, show_default=True, help="Harmful ones to show.")
@click.option(
    "--rerank",
    type=click.IntRange(0, 10_000),
    default=100,
    show_default=True,
    help="Candidates at each end that are rescored from their factors; rare labels add up to a quarter more.",
)
@click.option("--exact", is_flag=True, help="Rescore the candidates by running them through the model again.")
@click.option(
    "--trust",
    type=click.IntRange(0, 10_000),
    default=0,
    metavar="N",
    help="Run N random samples too, and tell how many of the true best are shown, with 95 % confidence.",
)
@click.option(
    "--certify",
    type=click.IntRange(0, 10_000),
    default=0,
    metavar="N",
    help="Run up to N more at each end, until the stored norms rule out that anything is missed.",
)
@click.option("--tokens", is_flag=True, help="With --json: the value of every item split over its tokens.")
@json_option
def query(store: str, device: str, tokens: bool, as_json: bool, **question: Any) -> int:
    """Show the samples that help a behaviour most, and those that hurt it most.

    The behaviour is a text, a prompt with its response, or a validation set, whose mean is one query.

    \b
    curator query --prompt "What is 2 + 2?" --response " 4" --store store
    curator query --data validation.jsonl --prompt-field question --response-field answer --method preconditioned \\
        --store store --json
    """
    from curator.service import Curator

    with Curator.open(store, create=False, device=device) as curator:
        for result in curator.queries(tokens=tokens or not as_json, **question):
            for note in result.notes:
                click.echo(f"curator: {printable(note)}", err=True)
            if as_json:
                click.echo(json.dumps(result.to_dict(), ensure_ascii=False))
            else:
                from curator.cli.render import show

                show(result)
        return _unanswered(curator.unanswered)


@click.command()
@store_option
@query_options
@click.option("--out", metavar="FILE", help="A .jsonl or .parquet file. [default: JSON lines on stdout]")
def values(store: str, device: str, out: str | None, **question: Any) -> int:
    """Write the value of every sample for one query: id, key, value.

    Read from the sketches in one streaming scan, whatever the size of the corpus.

    \b
    curator values --data validation.jsonl --store store --out values.parquet
    """
    from curator.service import Curator

    with Curator.open(store, create=False, device=device) as curator:
        if out is None:
            for row in curator.values(**question):
                click.echo(json.dumps(row, ensure_ascii=False))
        else:
            count = curator.write_values(Path(out), **question)
            click.echo(f"curator: {count:,} values written to {out}", err=True)
        return _unanswered(curator.unanswered)


def _unanswered(problems: list[str]) -> int:
    """3 where some of several queries could not be answered, said one by one."""
    for problem in problems:
        click.echo(f"curator: {printable(problem)}", err=True)
    return 3 if problems else 0
