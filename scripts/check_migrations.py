"""Fails when `alembic upgrade head` makes another schema than curator/metadata/tables.py describes."""

import sys
import tempfile
from pathlib import Path

from curator.metadata import database


def main() -> int:
    """0 when the two are in step; otherwise prints the differences."""
    with tempfile.TemporaryDirectory() as directory:
        engine = database.connect(f"sqlite:///{Path(directory) / 'curator.db'}")
        database.upgrade(engine)
        differences = database.check_schema(engine)
        engine.dispose()
    for difference in differences:
        print(difference)
    print("migrations: in step with the tables" if not differences else "migrations: a revision is missing")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
