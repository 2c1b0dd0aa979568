"""add_song_sketches_table

Revision ID: d4641a241b98
Revises: 234ea0f4b6c3
Create Date: 2025-10-20 21:05:17
"""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op

revision = "d4641a241b98"
down_revision = "234ea0f4b6c3"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Sketches, from which songs can be made."""
    op.create_table(
        "song_sketches",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("title", sa.String(300), nullable=True),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("lyrics", sa.Text(), nullable=True),
        sa.Column("workflow", sa.String(40), server_default="draft", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_song_sketches"),
    )
    op.create_index("ix_song_sketches_workflow", "song_sketches", ["workflow"])
    op.add_column("songs", sa.Column("sketch_id", sa.Uuid(), nullable=True))
    op.create_foreign_key(
        "fk_songs_sketch_id_song_sketches",
        "songs",
        "song_sketches",
        ["sketch_id"],
        ["id"],
        ondelete="SET NULL",
    )
    op.create_index("ix_songs_sketch_id", "songs", ["sketch_id"])


def downgrade() -> None:
    """Without sketches."""
    op.drop_index("ix_songs_sketch_id", table_name="songs")
    op.drop_constraint("fk_songs_sketch_id_song_sketches", "songs", type_="foreignkey")
    op.drop_column("songs", "sketch_id")
    op.drop_index("ix_song_sketches_workflow", table_name="song_sketches")
    op.drop_table("song_sketches")
