"""Commands on the store itself: status, quarantined, delete, restore, compact, verify, doctor, db."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from curator.cli.options import json_option, store_option
from curator.cli.printable import printable

__all__ = ["compact", "db", "delete", "doctor", "quarantined", "restore", "status", "verify"]


@click.command()
@store_option
@json_option
def status(store: str, as_json: bool) -> None:
    """Show spaces, datasets, samples, quarantined rows and bytes."""
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        found = curator.status()
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    from curator.cli.render_store import show_status

    show_status(found)


@click.command()
@store_option
@click.option("--dataset", metavar="NAME", help="Only of this dataset.")
@json_option
def quarantined(store: str, dataset: str | None, as_json: bool) -> None:
    """List the rows that could not become samples, with the reason."""
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        rows = curator.quarantined(dataset)
    for row in rows:
        line = printable(f"{row['source']}:{row['row']}  {row['reason']}")
        click.echo(json.dumps(row, ensure_ascii=False) if as_json else line)
    if not rows:
        click.echo("curator: nothing in quarantine", err=True)


@click.command()
@store_option
@click.option("--where", required=True, metavar="FILTER", help="""Which samples: dataset = "train" and loss > 6""")
@json_option
def delete(store: str, where: str, as_json: bool) -> None:
    """Delete the samples that match a filter: no answer returns them any more.

    `curator undo` or `curator restore` takes it back; `curator compact` reclaims the bytes. Ingesting the same data
    again does not bring deleted samples back.
    """
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        count = curator.delete(where)
    click.echo(json.dumps({"deleted": count}) if as_json else f"{count:,} samples deleted")


@click.command()
@store_option
@click.option("--where", required=True, metavar="FILTER", help="Which deleted samples, by the same filter language.")
@json_option
def restore(store: str, where: str, as_json: bool) -> None:
    """Take back deletes."""
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        done = curator.restore(where)
    if as_json:
        click.echo(json.dumps(done))
        return
    click.echo(f"{done['restored']:,} samples restored")
    if done["to_ingest_again"]:
        click.echo(f"{done['to_ingest_again']:,} were compacted away: ingesting their source again brings them back")
    if done["key_taken"]:
        click.echo(f"{done['key_taken']:,} stay deleted: another sample bears their key by now")


@click.command()
@store_option
@json_option
def compact(store: str, as_json: bool) -> None:
    """Reclaim the bytes of deleted samples and join small segments. Ids and values stay."""
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        done = curator.compact()
    if as_json:
        click.echo(json.dumps(done))
        return
    click.echo(
        f"{done['segments_before']} segments became {done['segments_after']}; {done['samples_removed']:,} deleted "
        f"samples and {done['bytes_reclaimed']:,} bytes are gone"
    )


@click.command()
@store_option
@json_option
def verify(store: str, as_json: bool) -> int:
    """Check every file against its hash and every count. Exit code 5 when something is wrong."""
    from curator.service import Curator

    with Curator.open(store, create=False) as curator:
        found = curator.verify()
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        for problem in found["problems"]:
            click.echo(problem)
        verdict = f"{len(found['problems'])} problems" if found["problems"] else "sound"
        click.echo(
            f"{found['samples']:,} samples in {found['segments']} segments, {found['files']} files, "
            f"{found['bytes']:,} bytes: {verdict}"
        )
    return 5 if found["problems"] else 0


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """Tell what is installed, which device and faiss build are used, and what is wrong."""
    from curator.doctor import examine

    found = examine()
    if as_json:
        click.echo(json.dumps(found))
    else:
        for name, value in found["facts"].items():
            click.echo(f"{name:<14} {value}")
        for problem in found["problems"]:
            click.echo(f"problem: {problem}")
    return 1 if found["problems"] else 0


@click.group()
def db() -> None:
    """The store's database schema: upgrade, current, check."""


@contextmanager
def _engine(store: str) -> Iterator[Any]:
    from curator.store import open_engine

    engine = open_engine(store)
    try:
        yield engine
    finally:
        engine.dispose()


@db.command()
@store_option
def upgrade(store: str) -> None:
    """Migrate the schema to the newest revision."""
    from curator.metadata import database

    with _engine(store) as engine:
        before = database.current_revision(engine)
        database.upgrade(engine)
        click.echo(f"{before or 'empty'} -> {database.current_revision(engine)}")


@db.command()
@store_option
def current(store: str) -> None:
    """Show the schema's revision, and the newest one."""
    from curator.metadata import database

    with _engine(store) as engine:
        click.echo(f"{database.current_revision(engine) or 'empty'} (newest: {database.head_revision()})")


@db.command()
@store_option
def check(store: str) -> int:
    """Compare the schema with what the code expects. Exit code 5 when they differ."""
    from curator.metadata import database

    with _engine(store) as engine:
        differences = database.check_schema(engine)
    for difference in differences:
        click.echo(difference)
    click.echo("the schema differs" if differences else "the schema is in step", file=sys.stderr)
    return 5 if differences else 0
