"""add_lyric_parsing_rules_table

Revision ID: 0f864573b58a
Revises: 7a1c4e90d2b3
Create Date: 2025-10-12 10:21:05
"""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op

revision = "0f864573b58a"
down_revision = "7a1c4e90d2b3"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Rules that clean a song's lyrics: a pattern and what takes its place."""
    op.create_table(
        "lyric_parsing_rules",
        sa.Column("id", sa.Integer(), sa.Identity(), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("pattern", sa.Text(), nullable=False),
        sa.Column("replacement", sa.Text(), nullable=True),
        sa.Column("active", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("position", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_lyric_parsing_rules"),
    )
    op.create_index("ix_lyric_parsing_rules_active_position", "lyric_parsing_rules", ["active", "position"])


def downgrade() -> None:
    """Without rules."""
    op.drop_index("ix_lyric_parsing_rules_active_position", table_name="lyric_parsing_rules")
    op.drop_table("lyric_parsing_rules")
