"""`curator status` as tables."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from curator.cli.printable import printable

__all__ = ["show_status"]


def show_status(found: dict[str, Any]) -> None:
    """Prints the spaces and datasets of a store."""
    console = Console(highlight=False)
    console.print(f"store {found['store']}", markup=False)
    for space in found["spaces"]:
        projection, tiers = space["projection"], space["bytes"]
        per_sample = max(1, space["samples"] + space["deleted"])
        console.print(
            f"\nspace {space['fingerprint'][:12]}  {printable(space['model'])}  positions {space['positions']}, "
            f"max length {space['max_length']}, {space['dtype']}\n"
            f"  {space['samples']:,} samples ({space['deleted']:,} deleted, {space['truncated']:,} truncated), "
            f"{space['tokens']:,} tokens, {space['counted_tokens']:,} counted, in {space['segments']} segments\n"
            f"  bytes: sketches {tiers['sketches']:,} ({tiers['sketches'] / per_sample:,.0f} a sample), "
            f"factors {tiers['factors']:,} ({tiers['factors'] / per_sample:,.0f} a sample), "
            f"lists of rare tokens {tiers['rare_tokens']:,} ({tiers['rare_tokens'] / per_sample:,.0f} a sample)\n"
            f"  sketch of {projection['width']} numbers (U_e {projection['error_rank']} x U_h "
            f"{projection['hidden_rank']}, calibrated on {projection['num_samples']} samples) captures "
            f"{space['captured']:.1%} of the samples' energy; mean loss {space['loss']:.3f}",
            markup=False,
        )
        _advise(console, space)
    table = Table(box=None, padding=(0, 2), title=None)
    table.add_column("dataset")
    table.add_column("space")
    for name in ("samples", "deleted", "quarantined", "tokens", "captured", "newest", "loss"):
        table.add_column(name, justify="right")
    for row in found["datasets"]:
        table.add_row(
            Text(printable(row["dataset"])),
            row["space"][:12],
            f"{row['samples']:,}",
            f"{row['deleted']:,}",
            f"{row['quarantined']:,}",
            f"{row['tokens']:,}",
            f"{row['captured']:.1%}",
            _newest(row["history"]),
            f"{row['loss']:.3f}",
        )
    console.print()
    console.print(table if found["datasets"] else "no dataset yet")


def _advise(console: Console, space: dict[str, Any]) -> None:
    for fallen in space["refit"]["datasets"]:
        console.print(
            f"  captured energy fell from {fallen['from']:.1%} to {fallen['to']:.1%} in {fallen['samples']:,} samples "
            f"of dataset {printable(fallen['dataset'])} since {fallen['since'][:10]}: curator refit would help "
            "(--dry-run says how much)",
            markup=False,
        )


def _newest(history: list[dict[str, Any]]) -> str:
    """Captured energy of the newest tenth."""
    return f"{history[-1]['captured']:.1%}" if history else ""
