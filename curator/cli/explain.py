"""`curator explain`: why a sample has its value."""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curator.cli.options import json_option, method_options, saved_options, store_option
from curator.cli.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from curator.query import Explanation

__all__ = ["explain"]

_HTML_WIDTH = 120


@click.command()
@click.argument("sample")
@store_option
@saved_options
@method_options
@click.option("--exact", is_flag=True, help="Run the sample through the model, instead of reading its stored factors.")
@click.option("--pairs", type=click.IntRange(0, 10_000), default=20, show_default=True, help="Pairs of tokens to show.")
@click.option("--html", metavar="FILE", help="Write a standalone page instead of printing.")
@json_option
def explain(sample: str, store: str, device: str, html: str | None, as_json: bool, pairs: int, **question: Any) -> None:
    """Tell why SAMPLE (a key or an id) has its value for a query, token by token.

    \b
    curator explain train:17 --prompt "What is 2 + 2?" --response " 4" --store store
    curator explain train:17 --saved good --store store --html why.html

    The value is a sum over pairs of tokens, one of the sample and one of the query: alike in what the model saw before
    them, and in what it got wrong. Both texts are shaded by their parts, and the largest pairs are listed with what the
    model had expected instead.
    """
    from curator.export import check_place, replacing
    from curator.service import Curator

    page = None if html is None else Path(html)
    if page is not None:
        check_place(page)
    with Curator.open(store, create=False, device=device) as curator:
        found = curator.explain(sample, pairs=pairs, **question)
    if as_json:
        click.echo(json.dumps(found.to_dict(), ensure_ascii=False))
    from rich.console import Console

    if page is not None:
        console = Console(highlight=False, record=True, width=_HTML_WIDTH, file=io.StringIO())
        _show(found, console)
        with replacing(page) as beside:
            beside.write_text(console.export_html(inline_styles=True), encoding="utf-8")
        click.echo(f"curator: written to {html}", err=True)
    elif not as_json:
        _show(found, Console(highlight=False))


def _show(found: "Explanation", console: "Console") -> None:
    from rich.text import Text

    how, sample = found.how, found.sample
    method = how["method"] if how["damping"] is None else f"{how['method']} (damping {how['damping']:g})"
    label = f" · {printable(sample['label'])}" if sample["label"] else ""
    console.print(Text(f"{printable(sample['key'])}{label} · value {found.value:.6g} · {method}", style="bold"))
    console.print("\nthe sample, shaded by its part of the value: green helps, red hurts", style="dim")
    console.print(_shaded(sample["text"], found.tokens))
    for part in found.query_samples:
        console.print(f"\nthe query, part {part.value:.6g} of the value", style="dim")
        console.print(_shaded(part.text, part.tokens))
    hidden = how["num_query_samples"] - len(found.query_samples)
    if hidden > 0:
        console.print(
            f"\n{hidden:,} more samples of the query have smaller parts, together {found.not_shown:.6g}", style="dim"
        )
    if found.pairs:
        console.print()
        console.print(_pairs(found))
    rest = f"the stored factors leave out {found.rest:.3g}: see --exact" if how["tier"] == "factors" else "exact"
    console.print(Text(f"{how['tier']} tier · {rest} · space {how['space'][:12]}", style="dim"))


def _shaded(text: str, tokens: list[Any]) -> Any:
    from rich.text import Text

    from curator.cli.render import before_counted, shaded

    strongest = max((abs(token.value) for token in tokens), default=0.0)
    shown = Text(printable(before_counted(text, [token.text for token in tokens])), style="dim")
    for token in tokens:
        shown.append(printable(token.text), style=shaded(token.value, strongest) or "not dim")
    return shown


def _pairs(found: "Explanation") -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="pairs of tokens with the largest parts", title_justify="left", title_style="bold", box=None)
    for name in ("part", "in the sample", "instead of", "in the query", "instead of"):
        table.add_column(name, justify="right" if name == "part" else "left", overflow="fold")
    for pair in found.pairs:
        one = found.tokens[pair.sample_token]
        other = found.query_samples[pair.query_sample].tokens[pair.query_token]
        cells = [f"{pair.value:.4g}"]
        for token in (one, other):
            expected = ", ".join(f"{text!r} {error:.0%}" for text, error in token.expected if error >= 0.01)
            cells += [repr(token.text), printable(expected) or "nothing else"]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table
