"""`curator audit`: samples to look at, with the reason, and what to do about them."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from curator.cli.options import json_option, model_options, space_option, store_option
from curator.cli.printable import printable

if TYPE_CHECKING:
    from curator.audit import AuditResult
    from curator.service import Curator

__all__ = ["audit"]

_MOST_CHARACTERS = 240


def _acting(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every audit: which samples, and what is done with those found."""
    for option in (
        json_option,
        click.option("--out", metavar="FILE", help="Write them to a .jsonl file."),
        click.option("--delete", is_flag=True, help="Delete them; curator undo takes it back."),
        click.option("--tag", metavar="NAME", help="Tag them; curator undo takes it back."),
        click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="The worst so many."),
        click.option(
            "--where", metavar="FILTER", help="""Only samples like: dataset = "train" and not tag = "seen\""""
        ),
        space_option,
        store_option,
    ):
        command = option(command)
    return command


@click.group()
def audit() -> None:
    """Find samples to look at: mislabelled ones, duplicates, outliers.

    \b
    curator audit mislabeled --reference clean.jsonl --text-field text --label-field task --store store
    curator audit mislabeled --store store --limit 100 --tag suspect
    curator audit duplicates --store store --delete
    curator audit outliers --store store --out outliers.jsonl

    What is listed is what --tag, --delete and --out act on.
    """


@audit.command()
@_acting
@click.option("--reference", multiple=True, metavar="FILE", help="Clean rows; each group is held against its own.")
@click.option("--by", metavar="FIELD", help="The group: a metadata field. [default: the label]")
@click.option(
    "--method",
    type=click.Choice(["raw", "cosine", "preconditioned", "preconditioned-cosine"]),
    default="preconditioned-cosine",
    show_default=True,
    help="What a value is; the first three as in curator query, the last is both.",
)
@click.option("--damping", type=float, default=10.0, show_default=True, help="Larger is nearer to raw.")
@click.option("--text-field", metavar="COLUMN", help="The reference's column with the text.")
@click.option("--prompt-field", metavar="COLUMN", help="Its column with the prompt; only the response counts.")
@click.option("--response-field", metavar="COLUMN", help="Its column with the response.")
@click.option("--image-field", metavar="COLUMN", help="Its column with the image or images.")
@click.option("--messages-field", metavar="COLUMN", help="Its column with conversations; the assistant's turns count.")
@click.option("--shape", type=click.Choice(["chat", "prompt", "text"]), help="What its rows are. [default: by columns]")
@click.option("--label-field", metavar="COLUMN", help="Its column with the label.")
@model_options
def mislabeled(
    store: str, device: str, tag: str | None, delete: bool, out: str | None, as_json: bool, **how: Any
) -> None:
    """Find samples that do not belong to the group they are in, worst first.

    With --reference, by their value for the clean rows of their own group; without, by how little they agree with the
    rest of their group.
    """
    from curator.service import Curator

    with Curator.open(store, create=False, device=device) as curator:
        _conclude(curator, curator.audit_mislabeled(**how), tag, delete, out, as_json)


@audit.command()
@_acting
@click.option("--threshold", type=float, help="Least cosine of two sketches that are near. [default: 0.95]")
@click.option("--exact", is_flag=True, help="Only equal texts.")
def duplicates(store: str, tag: str | None, delete: bool, out: str | None, as_json: bool, **how: Any) -> None:
    """Find samples that say again what an earlier one says: the same text, or nearly the same to the model.

    The earlier one is kept: it is named, and is not among those listed.
    """
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        _conclude(curator, curator.audit_duplicates(**how), tag, delete, out, as_json)


@audit.command()
@_acting
@click.option("--deviation", type=float, help="Least robust standard deviations from the median. [default: 3.5]")
def outliers(store: str, tag: str | None, delete: bool, out: str | None, as_json: bool, **how: Any) -> None:
    """Find samples whose captured energy, norm or loss sticks out of their dataset."""
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        _conclude(curator, curator.audit_outliers(**how), tag, delete, out, as_json)


def _conclude(
    curator: "Curator", result: "AuditResult", tag: str | None, delete: bool, out: str | None, as_json: bool
) -> None:
    """Shows what was found, and does with it what was asked for: written before it is tagged, tagged before deleted."""
    for note in result.notes:
        click.echo(f"curator: {printable(note)}", err=True)
    if as_json:
        click.echo(json.dumps(result.to_dict(), ensure_ascii=False))
    else:
        _show(result)
    if out is not None:
        click.echo(f"curator: {result.write(out):,} findings written to {out}", err=True)
    if tag is not None and result.items:
        done = curator.tag(tag, ids=result.ids)
        number = "no change" if done["change"] is None else f"change {done['change']}"
        click.echo(f"curator: {number}: {done['samples']:,} samples tagged {printable(tag)}", err=True)
    if delete and result.items:
        count = curator.delete(ids=result.ids)
        click.echo(f"curator: {count:,} samples deleted; curator undo takes it back", err=True)


def _show(result: "AuditResult") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 1), expand=True)
    for name, ratio in (("key", 2), ("label", 2), ("reason", 5), ("text", 5)):
        table.add_column(name, overflow="fold", ratio=ratio)
    for item in result.items:
        cells = (item.key, item.label or "", item.reason, _end(item.text))
        table.add_row(*(Text(printable(cell)) for cell in cells))
    if result.items:
        console.print(table)
    how = ", ".join(f"{name} {value}" for name, value in result.how.items() if value is not None and name != "space")
    console.print(Text(f"{result.audit}: {len(result.items):,} shown · {printable(how)}", style="dim"))


def _end(text: str) -> str:
    """Long texts by their end: the answer is what is judged."""
    return text if len(text) <= _MOST_CHARACTERS else f"...{text[-_MOST_CHARACTERS:]}"
