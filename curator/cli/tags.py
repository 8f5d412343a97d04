"""`curator tag`, `untag`, `tags`, `note`, `notes`: words on samples; `changes`, `undo`: their log."""

import json
from typing import Any

import click

from curator.cli.options import json_option, query_options, space_option, store_option
from curator.cli.printable import printable

__all__ = ["changes", "note", "notes", "summary", "tag", "tags", "undo", "untag"]


def _choosing(command: Any) -> Any:
    """The options that say which samples."""
    for option in (
        click.option("--harmful", type=click.IntRange(0, 10_000), help="So many of the query's most harmful samples."),
        click.option("--top", type=click.IntRange(0, 10_000), help="So many of the query's most helpful samples."),
        query_options,
        click.option("--id", "ids", multiple=True, metavar="SAMPLE", help="A sample's key or id; may be repeated."),
        store_option,
    ):
        command = option(command)
    return command


@click.command()
@click.argument("name")
@_choosing
@json_option
def tag(name: str, store: str, device: str, as_json: bool, **chosen: Any) -> None:
    """Give samples the tag NAME: those that match a filter, or --id, or the ends of a query's answer.

    \b
    curator tag noisy --where 'loss > 6 and dataset = "train"' --store store
    curator tag keep --id train:17 --id train:21 --store store
    curator tag harmful --saved good --harmful 100 --store store

    Every filter finds it again, as in --where 'tag = "noisy"'. `curator undo` takes it back.
    """
    _tag("tag", name, store, device, as_json, chosen)


@click.command()
@click.argument("name")
@_choosing
@json_option
def untag(name: str, store: str, device: str, as_json: bool, **chosen: Any) -> None:
    """Take the tag NAME from samples, chosen as for `curator tag`."""
    _tag("untag", name, store, device, as_json, chosen)


def _tag(verb: str, name: str, store: str, device: str, as_json: bool, chosen: dict[str, Any]) -> None:
    from curator.service import Curator

    ids = chosen.pop("ids") or None
    question = {option: value for option, value in chosen.items() if value is not None}
    with Curator.open(store, create=False, device=device) as curator:
        done = getattr(curator, verb)(name, ids=ids, **question)
    if as_json:
        click.echo(json.dumps(done, ensure_ascii=False))
    elif done["change"] is None:
        click.echo(f"nothing changed: no sample is meant that {'does not bear' if verb == 'tag' else 'bears'} the tag")
    else:
        click.echo(f"change {done['change']}: {done['samples']:,} samples {verb}ged {printable(name)}")


@click.command()
@store_option
@json_option
def tags(store: str, as_json: bool) -> None:
    """List the tags and how many samples bear them."""
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        found = curator.tags()
    for row in found:
        click.echo(
            json.dumps(row, ensure_ascii=False) if as_json else f"{row['samples']:>10,}  {printable(row['tag'])}"
        )
    if not found:
        click.echo("curator: no sample bears a tag: curator tag NAME --where FILTER", err=True)


@click.command()
@click.argument("sample")
@click.argument("text")
@store_option
@space_option
@json_option
def note(sample: str, text: str, store: str, space: str | None, as_json: bool) -> None:
    """Write a note on SAMPLE (a key or an id), in the place of the one before; an empty TEXT removes it.

    \b
    curator note train:17 "the answer is that of 12 + 8" --store store
    curator notes --where 'note contains "12 + 8"' --store store
    """
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        done = curator.note(sample, text, space=space)
    if as_json:
        click.echo(json.dumps(done))
    else:
        click.echo("nothing changed" if done["change"] is None else f"change {done['change']}: noted")


@click.command()
@store_option
@click.option("--where", default="note is not null", metavar="FILTER", help="Only of samples that match.")
@json_option
def notes(store: str, where: str, as_json: bool) -> None:
    """List the notes."""
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        found = curator.notes(where)
    for row in found:
        line = f"{printable(row['key'])} ({printable(row['dataset'])}, {row['id']}): {printable(row['note'])}"
        click.echo(json.dumps(row, ensure_ascii=False) if as_json else line)
    if not found:
        click.echo("curator: no sample has a note: curator note SAMPLE TEXT", err=True)


@click.command()
@store_option
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="So many of the newest.")
@json_option
def changes(store: str, limit: int, as_json: bool) -> None:
    """List what was done to samples: tags, notes, deletes and restores, newest first."""
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        found = curator.changes(limit)
    for change in found:
        line = f"{change['change']:>5}  {change['created_at'][:19]}  {summary(change)}"
        click.echo(json.dumps(change, ensure_ascii=False) if as_json else line)
    if not found:
        click.echo("curator: nothing was changed yet", err=True)


@click.command()
@store_option
@click.option("--change", type=click.IntRange(1), metavar="N", help="Which one. [default: the newest]")
@json_option
def undo(store: str, change: int | None, as_json: bool) -> None:
    """Take the newest change back, or --change N: samples are then as they were before it."""
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        done = curator.undo(change)
    if as_json:
        click.echo(json.dumps(done, ensure_ascii=False))
        return
    click.echo(f"change {done['change']} is taken back: {summary(done | {'undone_at': None})}")
    left = done["done"]
    if left.get("to_ingest_again"):
        click.echo(f"{left['to_ingest_again']:,} were compacted away: ingesting their source again brings them back")
    if left.get("key_taken"):
        click.echo(f"{left['key_taken']:,} stay deleted: another sample bears their key by now")


def summary(change: dict[str, Any]) -> str:
    """A change in one line."""
    detail = change["detail"]
    what = change["kind"] if change["tag"] is None else f"{change['kind']} {printable(change['tag'])}"
    chosen = ", ".join(f"{name} {_short(detail[name])}" for name in detail if detail[name] not in (None, 0))
    undone = f"  (undone {change['undone_at'][:19]})" if change["undone_at"] else ""
    return f"{what}: {change['samples']:,} samples" + (f", {chosen}" if chosen else "") + undone


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(text if len(text) <= 80 else text[:77] + "...")
