"""`curator evaluate`: how well values tell classes apart, and wrong samples from right ones."""

import json
from typing import TYPE_CHECKING, Any

import click

from curator.cli.options import field_options, json_option, model_options, store_option
from curator.cli.printable import printable

if TYPE_CHECKING:
    from curator.evaluate import Evaluation

__all__ = ["evaluate"]


@click.command()
@store_option
@click.option("--data", multiple=True, required=True, metavar="FILE", help="A validation set; each class is a query.")
@field_options
@click.option("--by", default="label", show_default=True, metavar="FIELD", help="Classes: label, or a column.")
@click.option(
    "--label-field", metavar="COLUMN", help="The class's column in --data. [default: the one that --by names]"
)
@click.option("--wrong", metavar="FILTER", help="""Samples known to be wrong, like: is_wrong = true""")
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(["raw", "cosine", "preconditioned"]),
    help="Several are compared. [default: all]",
)
@click.option("--damping", type=float, default=10.0, show_default=True, help="Of preconditioned.")
@click.option("--where", metavar="FILTER", help="""Only samples like: dataset = "train" and num_tokens < 200""")
@click.option("--space", metavar="FINGERPRINT", help="Its first characters. [default: the newest space]")
@model_options
@json_option
def evaluate(store: str, device: str, as_json: bool, methods: tuple[Any, ...], **choice: Any) -> None:
    """Measure on your own labels which method fits: do values find the class, and what is wrong in it?

    \b
    curator evaluate --data validation.jsonl --by source --store store
    curator evaluate --data validation.jsonl --label-field task --wrong "is_wrong = true" --store store --json

    Each class of the validation set is one query. Retrieval: its own samples should have the highest values. Detection:
    among these, samples known to be wrong should have the lowest. AUC .5 is chance, 1 is perfect; recall is the share
    found among as many as there are. At the sketch tier: one scan of the corpus.
    """
    from curator.service import Curator

    with Curator.open(store, create=False, device=device) as curator:
        if methods:
            choice["methods"] = methods
        found = curator.evaluate(**choice)
    for note in found.notes:
        click.echo(f"curator: {printable(note)}", err=True)
    if as_json:
        click.echo(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        _show(found)


def _show(found: "Evaluation") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=None, title="mean ± standard deviation over the classes", title_justify="left")
    names = {"retrieval_auc": "retrieval AUC", "retrieval_recall": "recall", "detection_auc": "detection AUC",
             "detection_recall": "recall"}  # fmt: skip
    shown = [name for name in names if any(row[name] for row in found.methods)]
    for heading in ("method", *(names[name] for name in shown)):
        table.add_column(heading)
    for row in found.methods:
        cells = [f"{row[name]['mean']:.3f} ± {row[name]['std']:.3f}" if row[name] else "" for name in shown]
        table.add_row(row["method"], *cells)
    console.print(table)
    first = found.groups[0].method
    table = Table(box=None, title=f"by class, {first}", title_justify="left")
    for heading in (found.by, "samples", "wrong", *(names[name] for name in shown)):
        table.add_column(heading, overflow="fold")
    for score in found.groups:
        if score.method == first:
            cells = ["" if getattr(score, name) is None else f"{getattr(score, name):.3f}" for name in shown]
            wrong = "" if score.num_wrong is None else f"{score.num_wrong:,}"
            table.add_row(Text(printable(score.group)), f"{score.num_own:,}", wrong, *cells)
    console.print(table)
