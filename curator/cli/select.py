"""`curator select`: the subset worth training on."""

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from curator.cli.options import json_option, method_options, saved_options, store_option
from curator.cli.printable import printable

if TYPE_CHECKING:
    from curator.select import Selection

__all__ = ["select"]

_BAR = 40  # at most
_BESIDE_BAR = 36  # columns for the value before a bar and the counts behind it
_MOST_GROUPS = 30


@click.command()
@store_option
@saved_options
@method_options
@click.option("--where", metavar="FILTER", help="""Only of samples like: label = "x" and num_tokens < 200""")
@click.option("--ratio", type=float, help="So large a part of these samples: .1")
@click.option("--count", type=int, help="So many samples.")
@click.option("--budget-tokens", type=int, metavar="N", help="As many as fit into so many tokens.")
@click.option("--min-value", type=float, help="Only of at least this value.")
@click.option("--min-percentile", type=float, metavar="P", help="Only of at least this percentile, 0 to 100.")
@click.option("--by", metavar="FIELD", help="Quotas: groups by label, dataset, or a column of the data, with --each.")
@click.option("--each", type=int, metavar="N", help="At most so many samples of every group.")
@click.option("--diverse", is_flag=True, help="Greedy gradient matching: a second copy is worth less than the first.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of --diverse.")
@click.option("--out", metavar="PATH", help="A .jsonl or .parquet file, or a directory for datasets.load_dataset.")
@click.option("--dry-run", is_flag=True, help="Show what it would take; write nothing.")
@json_option
def select(store: str, device: str, out: str | None, dry_run: bool, as_json: bool, **choice: Any) -> None:
    """Select the subset worth training on, and export it.

    \b
    curator select --saved good --ratio .1 --out subset.jsonl --store store
    curator select --expr "good - 0.5 * bad" --by label --each 100 --diverse --out subset --store store
    curator select --saved good --budget-tokens 1000000 --dry-run --store store

    By the values of the sketches, of the whole corpus. All limits that are given hold. The export has the original
    columns, value and rank, and a manifest that says how it was made.
    """
    from curator.errors import UsageError
    from curator.service import Curator

    if (out is None) != dry_run:
        raise UsageError("give --out PATH to write the selection, or --dry-run to look at it")
    with Curator.open(store, create=False, device=device) as curator:
        command = shlex.join(["curator", *sys.argv[1:]])
        found = curator.select(out=out, command=command, **choice)
    for note in found.notes:
        click.echo(f"curator: {printable(note)}", err=True)
    if as_json:
        click.echo(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        _show(found)
    if out is not None:
        click.echo(f"curator: {len(found.ids):,} samples written to {out}", err=True)


def _show(found: "Selection") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=None, title="taken, by dataset and label", title_justify="left", title_style="bold")
    for name in ("dataset", "label", "taken", "of", "tokens", "mean value"):
        table.add_column(name, justify="left" if name in ("dataset", "label") else "right", overflow="fold")
    for group in found.groups[:_MOST_GROUPS]:
        mean = "" if group["mean_value"] is None else f"{group['mean_value']:.4g}"
        numbers = (f"{group[name]:,}" for name in ("taken", "of", "tokens"))
        table.add_row(Text(printable(group["dataset"])), Text(printable(group["label"] or "")), *numbers, mean)
    console.print(table)
    if len(found.groups) > _MOST_GROUPS:
        console.print(f"and {len(found.groups) - _MOST_GROUPS:,} more groups", style="dim")
    _show_histogram(found.histogram, console)
    taken, of = found.counts["taken"], found.counts["of"]
    console.print(f"{taken['samples']:,} of {of['samples']:,} samples, {taken['tokens']:,} of {of['tokens']:,} tokens")
    if found.how["follows"]:
        console.print(f"their sum follows the query: cosine {found.how['follows']['cosine']:.3f}")


def _show_histogram(histogram: dict[str, list[float]], console: Any) -> None:
    from rich.text import Text

    most = max(histogram["all"], default=0) or 1
    width = max(1, min(_BAR, console.width - _BESIDE_BAR))
    console.print(Text("values: taken among all", style="bold"))
    for low, all_, taken in zip(histogram["edges"], histogram["all"], histogram["taken"], strict=False):
        long, filled = (round(width * count / most) for count in (all_, taken))
        bar = Text(f"{low:>11.4g}  ").append("█" * filled, style="green").append("░" * (long - filled), style="dim")
        console.print(bar.append(f"  {int(taken):,} of {int(all_):,}" if all_ else "", style="dim"))
