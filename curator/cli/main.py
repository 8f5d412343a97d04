"""`curator`: the entry point, and how errors end.

Exit codes: 0 done, 1 failure, 2 usage, 3 done with quarantined rows, 4 not found, 5 integrity, 6 locked or another
space, 130 interrupted and resumable. Commands import what they need when they run, so that --help is immediate.
"""

import gc
import os
import sys

import click

from curator import __version__
from curator.cli.audit import audit
from curator.cli.evaluate import evaluate
from curator.cli.explain import explain
from curator.cli.ingest import ingest
from curator.cli.preview import preview
from curator.cli.printable import printable
from curator.cli.queries import queries
from curator.cli.query import query, values
from curator.cli.refit import refit
from curator.cli.select import select
from curator.cli.spaces import compare, spaces
from curator.cli.store import compact, db, delete, doctor, quarantined, restore, status, verify
from curator.cli.tags import changes, note, notes, tag, tags, undo, untag
from curator.errors import CuratorError

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="curator")
def cli() -> None:
    """Which training samples help a behaviour, which hurt it, and why.

    \b
    curator ingest train.jsonl --model HuggingFaceTB/SmolLM2-135M --dataset train --store store
    curator query --data validation.jsonl --store store
    curator values --text "2 + 2 = 4" --store store --out values.jsonl

    Every sample passes the model once, forward only. From then on any query is answered by a search.
    """


for command in (
    *(
        preview,
        ingest,
        query,
        queries,
        explain,
        select,
        values,
        audit,
        evaluate,
        compare,
        spaces,
        status,
        quarantined,
        delete,
        restore,
        compact,
    ),
    *(refit, verify, tag, untag, tags, note, notes, changes, undo, doctor, db),
):
    cli.add_command(command)


def main() -> None:
    """Runs the command line; errors raised on purpose end as one line and their exit code."""
    # Importing torch and transformers makes a million objects that stay; looking for garbage among them every 700
    # objects was an eighth of a query's start.
    gc.set_threshold(50_000, 20, 20)
    try:
        result = cli(standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except CuratorError as error:
        _end(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        help_ = f"; see: {error.ctx.command_path} --help" if error.ctx else ""
        _end(error.format_message().rstrip(".") + help_, error.exit_code)
    except click.ClickException as error:
        _end(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _end("interrupted", 130)
    except Exception as error:  # noqa: BLE001 (the last line of defence says what it caught)
        _unexpected(error)


def _unexpected(error: Exception) -> None:
    """Failures of the libraries below: one line; the traceback where CURATOR_DEBUG asks for it."""
    from sqlalchemy.exc import SQLAlchemyError

    if os.environ.get("CURATOR_DEBUG"):
        raise error
    if isinstance(error, SQLAlchemyError):
        _end(f"the database failed: {str(getattr(error, 'orig', None) or error).splitlines()[0]}", 1)
    if isinstance(error, OSError):
        _end(f"{error.filename or 'the system'}: {error.strerror or error}", 1)
    _end(f"{type(error).__name__}: {error} (a defect of curator; CURATOR_DEBUG=1 shows where)", 1)


def _end(message: str, code: int) -> None:
    click.echo(f"curator: {printable(' '.join(message.split()))}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
