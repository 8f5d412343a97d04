"""`curator preview`: what the model would read, and what of it would count."""

import json
from typing import TYPE_CHECKING, Any

import click

from curator.cli.options import field_options, json_option
from curator.cli.printable import printable

if TYPE_CHECKING:
    from curator.preview import Preview

__all__ = ["preview"]

_COUNTED = "bold black on green"
_MOST_CHARACTERS = 4_000  # of one sample, before and after which the middle is left out


@click.command()
@click.argument("data", nargs=-1, required=True)
@click.option("--model", required=True, metavar="MODEL", help="A model's directory, or its name on the hub.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a model on the hub.")
@click.option("--adapter", metavar="ADAPTER", help="A PEFT adapter over the model: a directory or a name on the hub.")
@click.option("-n", "--num", type=click.IntRange(0, 100), default=3, show_default=True, help="Samples to show.")
@field_options
@click.option("--label-field", metavar="COLUMN", help="The label's column.")
@click.option(
    "--positions",
    type=click.Choice(["response", "all"]),
    default="response",
    show_default=True,
    help="Which tokens count: the response or the assistant's turns where there are any, or all.",
)
@click.option("--max-length", type=int, metavar="N", help="Tokens of a sample. [default: the model's, at most 2048]")
@click.option(
    "--on-long",
    type=click.Choice(["truncate", "reject"]),
    default="truncate",
    show_default=True,
    help="Longer samples: cut and marked, or quarantined.",
)
@click.option("--chat-template", metavar="FILE", help="A Jinja template in the place of the model's own.")
@json_option
def preview(data: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Show what an ingest of DATA would read, and which of its tokens would count.

    \b
    curator preview train.jsonl --model ./model
    curator preview qa.parquet --model ./model --shape chat --chat-template chatml.jinja -n 1

    Counted tokens are highlighted, or stand between « and » where the output is no terminal. Counts are of the first
    1,000 rows. Only the tokenizer is loaded.
    """
    from curator.service import Curator

    found = Curator.preview(data, **options)
    if as_json:
        click.echo(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        _show(found)


def _show(found: "Preview") -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(f"reading as {printable(found.reading)}", style="bold"))
    for sample in found.samples:
        named = f" · {printable(sample.key)}" if sample.key is not None else f" · {sample.side}" if sample.side else ""
        cut = f" · truncated to {found.max_length:,}" if sample.is_truncated else ""
        head = f"\nrow {sample.row}{named} · {sample.num_counted:,} of {sample.num_tokens:,} tokens count{cut}"
        console.print(Text(head, style="bold"))
        console.print(_text(sample.pieces, has_colours=console.is_terminal))
    for bad in found.quarantined:
        console.print(Text(f"\nrow {bad.row} would go to quarantine: {printable(bad.reason)}", style="bold red"))
        console.print(Text(printable(bad.excerpt), style="dim"))
    share = found.num_counted / found.num_tokens
    line = (
        f"\nfirst {found.num_rows:,} rows: {found.num_samples:,} samples, {found.num_tokens:,} tokens, "
        f"{found.num_counted:,} of them count ({share:.0%}), {found.num_truncated:,} truncated to "
        f"{found.max_length:,}, {found.num_quarantined:,} quarantined"
    )
    console.print(Text(line, style="dim"))


def _text(pieces: list[tuple[str, bool]], *, has_colours: bool) -> Any:
    from rich.text import Text

    text = Text()
    for piece, is_counted in pieces:
        shown = piece
        if len(piece) > _MOST_CHARACTERS:
            half = _MOST_CHARACTERS // 2
            shown = f"{piece[:half]} ... {len(piece) - 2 * half:,} characters ... {piece[-half:]}"
        lines = "\n".join(printable(line) for line in shown.split("\n"))
        if not is_counted:
            text.append(lines, style="dim")
        else:
            text.append(lines if has_colours else f"«{lines}»", style=_COUNTED)
    return text
