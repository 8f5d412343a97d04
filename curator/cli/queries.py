"""`curator queries`: queries kept under a name, and what a grown corpus changed in their answers."""

import json
from typing import Any

import click

from curator.cli.options import json_option, saved_options, store_option
from curator.cli.printable import printable

__all__ = ["queries"]

_MOST_CHARACTERS = 100


@click.group()
def queries() -> None:
    """Save queries, combine them, and see how their answers change.

    \b
    curator queries save good --data good.jsonl --store store
    curator queries save bad --data bad.jsonl --store store
    curator query --expr "good - 0.5 * bad" --store store
    curator queries history good --store store

    Values are linear in the query, so saved queries add up. Asking one again runs no model, also after new ingests.
    """


@queries.command()
@click.argument("name")
@store_option
@saved_options
@click.option("--replace", is_flag=True, help="Replace a query of this name.")
@json_option
def save(name: str, store: str, device: str, replace: bool, as_json: bool, **question: Any) -> None:
    """Keep a query under NAME: letters, digits and _."""
    from curator.service import Curator

    with Curator.open(store, create=False, device=device) as curator:
        saved = curator.save_query(name, replace=replace, **question)
    skipped = saved["query"].get("num_skipped", 0)
    if skipped:
        click.echo(f"curator: {skipped:,} rows were skipped: nothing in them counts", err=True)
    click.echo(json.dumps(saved, ensure_ascii=False) if as_json else f"saved {_line(saved)}")


@queries.command("list")
@store_option
@json_option
def list_(store: str, as_json: bool) -> None:
    """List the saved queries."""
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        found = curator.saved_queries()
    for saved in found:
        click.echo(json.dumps(saved, ensure_ascii=False) if as_json else _line(saved))
    if not found:
        click.echo("curator: no query is saved yet: curator queries save NAME --data FILE", err=True)


@queries.command()
@click.argument("name")
@store_option
@json_option
def show(name: str, store: str, as_json: bool) -> None:
    """Show one saved query and the newest answer to it that its history holds."""
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        history = curator.query_history(name)
        found = next(saved for saved in curator.saved_queries() if saved["name"] == name)
    if as_json:
        click.echo(json.dumps(found | {"newest": history[-1] if history else None}, ensure_ascii=False))
        return
    click.echo(_line(found))
    click.echo(f"answers without the model in: {', '.join(space[:12] for space in found['spaces']) or 'no space'}")
    if history:
        _show_ends(history[-1])


@queries.command()
@click.argument("name")
@store_option
@json_option
def history(name: str, store: str, as_json: bool) -> None:
    """Tell what each ingest changed in the ten most helpful and the ten most harmful samples (raw values)."""
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        entries = curator.query_history(name)
    for entry in entries:
        if as_json:
            click.echo(json.dumps(entry, ensure_ascii=False))
            continue
        click.echo(f"{entry['created_at'][:19]}  {entry['num_samples']:,} samples  space {entry['space'][:12]}")
        if "entered" not in entry:
            _show_ends(entry)
            continue
        for end in ("helpful", "harmful"):
            entered, left = (", ".join(map(printable, entry[what][end])) for what in ("entered", "left"))
            click.echo(f"  {end}: " + (f"entered {entered}; left {left or 'none'}" if entered or left else "unchanged"))


@queries.command()
@click.argument("name")
@store_option
def delete(name: str, store: str) -> None:
    """Forget a saved query and its history."""
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        curator.delete_query(name)
    click.echo(f"{name} is deleted")


def _show_ends(entry: dict[str, Any]) -> None:
    for end in ("helpful", "harmful"):
        items = ", ".join(f"{printable(item['key'])} ({item['value']:.4g})" for item in entry[end])
        click.echo(f"  {end}: {items or 'none'}")


def _line(saved: dict[str, Any]) -> str:
    query = saved["query"]
    what = query.get("text") or query.get("expr") or query.get("saved") or ", ".join(query.get("data", ()))
    if "prompt" in query:
        what = query["prompt"] + query["response"]
    counts = f"{saved['num_samples']:,} samples, {saved['num_tokens']:,} counted tokens"
    return f"{saved['name']}: {printable(what)[:_MOST_CHARACTERS]}  ({counts}; {saved['created_at'][:10]})"
