"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}

Rules for authors: one change per revision; batch operations only (SQLite cannot alter in place); name every constraint;
never import from curator (the schema of today is not the schema of this revision); fill new columns in the same revision.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision: str = ${repr(up_revision)}
down_revision: str | None = ${repr(down_revision)}
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
