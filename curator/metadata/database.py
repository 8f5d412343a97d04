"""The database of a store: engine, connection settings and schema revisions.

SQLite by default (WAL, synchronous=FULL: an acknowledged commit survives power loss), PostgreSQL by URL.

Every open compares two revisions, and that needs no Alembic: one is in a table, the other in the names of the
migrations. Alembic (0.2 s) is imported where a schema is changed or compared.
"""

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from curator.errors import CuratorError, NotFoundError, UsageError
from curator.metadata.tables import Base

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["check_schema", "connect", "current_revision", "head_revision", "require_current", "upgrade"]

_NAMED = re.compile(r"^(revision|down_revision)\b[^=\n]*= *(.+)$", re.MULTILINE)  # at the head of a migration


def connect(url: str | sa.URL) -> sa.Engine:
    """An engine for a database URL. Nothing is created or changed."""
    try:
        engine = sa.create_engine(url)
    except (sa.exc.ArgumentError, ModuleNotFoundError) as error:
        raise UsageError(
            f"the database URL cannot be used ({type(error).__name__}); for PostgreSQL: "
            "pip install 'forvalue-curator[postgres]' and postgresql+psycopg://user@host/name"
        ) from error  # never the URL itself: it may hold a password
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _configure_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def _migrations() -> Path:
    """The folder of the migrations: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise CuratorError(f"the migrations are missing beside {package}; install forvalue-curator again")


def _config() -> "Config":
    """Alembic's configuration."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_migrations()).replace("%", "%%"))
    return config


def _revisions() -> dict[str, str | None]:
    """Every revision that this version of the package knows, with the one before it."""
    known: dict[str, str | None] = {}
    for path in (_migrations() / "versions").glob("*.py"):
        named = {name: ast.literal_eval(value) for name, value in _NAMED.findall(path.read_text("utf-8"))}
        known[named["revision"]] = named["down_revision"]
    return known


def head_revision() -> str:
    """The newest revision that this version of the package knows."""
    known = _revisions()
    return next(revision for revision in known if revision not in known.values())


def current_revision(engine: sa.Engine) -> str | None:
    """The revision of a database; None for an empty one. Raises CuratorError where it cannot be opened."""
    try:
        with engine.connect() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            found: str | None = connection.scalar(sa.text("select version_num from alembic_version"))
            return found
    except sa.exc.DBAPIError as error:
        raise CuratorError(f"the database {engine.url!r} cannot be opened: {error.orig}") from error


def upgrade(engine: sa.Engine) -> None:
    """Creates or migrates the schema to the newest revision, in one transaction."""
    from alembic import command

    _refuse_newer(current_revision(engine))
    config = _config()
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # pysqlite begins no transaction before DDL by itself
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def require_current(engine: sa.Engine) -> None:
    """Raises when the schema is older or newer than this version of the package."""
    found = current_revision(engine)
    if found is None:
        raise NotFoundError(f"the database {engine.url!r} holds no store")
    if found != head_revision():
        _refuse_newer(found)
        raise CuratorError(f"the store's schema {found} is older than {head_revision()}; run: curator db upgrade")


def _refuse_newer(found: str | None) -> None:
    if found is not None and found not in _revisions():
        raise CuratorError(
            f"the store's schema {found} is newer than this version of curator knows (up to {head_revision()}); "
            "upgrade forvalue-curator"
        )


def check_schema(engine: sa.Engine) -> list[str]:
    """Differences between the database and the tables in code, as Alembic would generate them; empty when in step."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return [str(difference) for difference in compare_metadata(context, Base.metadata)]
