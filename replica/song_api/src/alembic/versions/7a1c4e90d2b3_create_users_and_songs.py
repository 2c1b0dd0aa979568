"""create_users_and_songs

Revision ID: 7a1c4e90d2b3
Revises:
Create Date: 2025-08-03 19:12:44
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "7a1c4e90d2b3"
down_revision = None
branch_labels = None
depends_on = None

TOUCH_FUNCTION = """
CREATE FUNCTION touch_updated_at() RETURNS trigger
LANGUAGE plpgsql AS $body$
BEGIN
    -- A song that is saved without a change keeps its time.
    IF NEW IS DISTINCT FROM OLD THEN
        NEW.updated_at := now();
    END IF;
    RETURN NEW;
END;
$body$
"""


def upgrade() -> None:
    """Users, songs, and what hangs on them."""
    op.create_table(
        "users",
        sa.Column("id", sa.Integer(), sa.Identity(), nullable=False),
        sa.Column("email", sa.String(320), nullable=False),
        sa.Column("display_name", sa.String(200), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("email", name="uq_users_email"),
    )
    song_number = sa.Sequence("song_number_seq", start=1000)
    op.execute(sa.schema.CreateSequence(song_number))
    op.create_table(
        "songs",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("number", sa.BigInteger(), server_default=song_number.next_value(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("title", sa.String(300), nullable=False),
        sa.Column("lyrics", sa.Text(), nullable=True),
        sa.Column("style", sa.Text(), nullable=True),
        sa.Column(
            "status",
            sa.Enum("draft", "generating", "ready", "failed", name="song_status"),
            server_default="draft",
            nullable=False,
        ),
        sa.Column("duration_seconds", sa.Numeric(7, 2), nullable=True),
        sa.Column("details", postgresql.JSONB(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("duration_seconds >= 0", name="ck_songs_duration_not_negative"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_songs_user_id_users"),
        sa.PrimaryKeyConstraint("id", name="pk_songs"),
        sa.UniqueConstraint("number", name="uq_songs_number"),
    )
    op.execute("ALTER SEQUENCE song_number_seq OWNED BY songs.number")
    op.create_index("ix_songs_user_id", "songs", ["user_id"])
    op.create_index("ix_songs_status_created_at", "songs", ["status", "created_at"])
    op.execute(TOUCH_FUNCTION)
    op.execute(
        "CREATE TRIGGER songs_touch_updated_at BEFORE UPDATE ON songs FOR EACH ROW EXECUTE FUNCTION touch_updated_at()"
    )


def downgrade() -> None:
    """Back to an empty database."""
    op.drop_table("songs")
    op.execute("DROP FUNCTION touch_updated_at()")
    op.execute("DROP SEQUENCE IF EXISTS song_number_seq")
    op.execute("DROP TYPE song_status")
    op.drop_table("users")
