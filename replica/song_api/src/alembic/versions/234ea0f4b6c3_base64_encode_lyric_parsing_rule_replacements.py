"""base64_encode_lyric_parsing_rule_replacements

Revision ID: 234ea0f4b6c3
Revises: 0f864573b58a
Create Date: 2025-10-18 08:47:30
"""

from __future__ import annotations

import base64

import sqlalchemy as sa

from alembic import op

revision = "234ea0f4b6c3"
down_revision = "0f864573b58a"
branch_labels = None
depends_on = None


def _is_base64(value: str) -> bool:
    """Whether a value decodes already, so that a second run leaves it alone."""
    try:
        base64.b64decode(value).decode("utf-8")
    except ValueError:
        return False
    return True


def upgrade() -> None:
    """Replacements are kept as Base64 from here on."""
    conn = op.get_bind()
    rows = conn.execute(sa.text("SELECT id, replacement FROM lyric_parsing_rules ORDER BY id")).fetchall()
    for rule_id, replacement in rows:
        if replacement is None or _is_base64(replacement):
            continue
        conn.execute(
            sa.text("UPDATE lyric_parsing_rules SET replacement = :replacement WHERE id = :id"),
            {"replacement": base64.b64encode(replacement.encode("utf-8")).decode("ascii"), "id": rule_id},
        )
    conn.commit()


def downgrade() -> None:
    """Replacements are plain text again."""
    conn = op.get_bind()
    rows = conn.execute(sa.text("SELECT id, replacement FROM lyric_parsing_rules ORDER BY id")).fetchall()
    for rule_id, replacement in rows:
        if replacement is None or not _is_base64(replacement):
            continue
        conn.execute(
            sa.text("UPDATE lyric_parsing_rules SET replacement = :replacement WHERE id = :id"),
            {"replacement": base64.b64decode(replacement).decode("utf-8"), "id": rule_id},
        )
    conn.commit()
