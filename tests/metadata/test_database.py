"""The schema: what migrations make is what the code expects, up, down and up again."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from curator.errors import CuratorError, NotFoundError, UsageError
from curator.metadata import database
from curator.metadata.tables import Base
from curator.store import Store


@pytest.fixture
def engine(tmp_path: Path) -> sa.Engine:
    return database.connect(f"sqlite:///{tmp_path / 'curator.db'}")


def tables(engine: sa.Engine) -> set[str]:
    return set(sa.inspect(engine).get_table_names()) - {"alembic_version"}


def test_the_migrations_make_what_the_tables_say(engine: sa.Engine):
    assert database.current_revision(engine) is None
    database.upgrade(engine)
    assert database.current_revision(engine) == database.head_revision()
    assert database.check_schema(engine) == []
    assert tables(engine) == set(Base.metadata.tables)


def test_the_revisions_read_without_alembic_are_those_of_alembic(engine: sa.Engine):
    script = ScriptDirectory.from_config(database._config())
    assert database._revisions() == {entry.revision: entry.down_revision for entry in script.walk_revisions()}
    assert database.head_revision() == script.get_current_head()
    database.upgrade(engine)
    with engine.connect() as connection:
        assert database.current_revision(engine) == MigrationContext.configure(connection).get_current_revision()


def test_an_upgrade_can_be_taken_back_and_repeated(engine: sa.Engine):
    database.upgrade(engine)
    config = database._config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert tables(engine) == set()
    database.upgrade(engine)
    database.upgrade(engine)  # and nothing happens
    assert database.check_schema(engine) == []


def test_a_difference_is_found(engine: sa.Engine):
    database.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("alter table samples add column mood text"))
    assert any("mood" in difference for difference in database.check_schema(engine))


@pytest.mark.parametrize("action", [database.upgrade, database.require_current])
def test_a_newer_revision_is_refused(engine: sa.Engine, action):
    database.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("update alembic_version set version_num = '9999'"))
    with pytest.raises(CuratorError, match="9999 is newer than this version of curator knows"):
        action(engine)


def test_an_empty_database_is_no_store(engine: sa.Engine):
    with pytest.raises(NotFoundError, match="holds no store"):
        database.require_current(engine)


def test_a_commit_is_durable_and_readers_do_not_wait(tmp_path: Path):
    store = Store.create(tmp_path / "store")
    with store.engine.connect() as first, store.engine.connect() as second:
        for connection in (first, second):  # every connection, not the first alone
            settings = {
                name: connection.execute(sa.text(f"pragma {name}")).scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
            assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}
    store.close()


@pytest.mark.parametrize("url", ["nonsense", "nosuchdialect://x", "sqlite+nosuchdriver:///x"])
def test_a_url_that_means_nothing_is_a_usage_error(url: str):
    with pytest.raises(UsageError, match="cannot be used"):
        database.connect(url)
