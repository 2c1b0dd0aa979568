"""The tables, as the code of revision d4641a241b98 knows them."""

from __future__ import annotations

import datetime
import decimal
import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

SONG_STATUSES = ("draft", "generating", "ready", "failed")

song_number = sa.Sequence("song_number_seq", start=1000)


class Base(DeclarativeBase):
    """What all tables have in common: how constraints and indexes are called."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def _now() -> Mapped[datetime.datetime]:
    """A column that holds when its row was made."""
    return mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now())


class User(Base):
    """Somebody who makes songs."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(sa.Identity(), primary_key=True)
    email: Mapped[str] = mapped_column(sa.String(320), unique=True)
    display_name: Mapped[str] = mapped_column(sa.String(200))
    created_at: Mapped[datetime.datetime] = _now()


class SongSketch(Base):
    """An idea from which a song can be made."""

    __tablename__ = "song_sketches"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=sa.text("gen_random_uuid()"))
    title: Mapped[str | None] = mapped_column(sa.String(300))
    prompt: Mapped[str] = mapped_column(sa.Text)
    lyrics: Mapped[str | None] = mapped_column(sa.Text)
    workflow: Mapped[str] = mapped_column(sa.String(40), server_default="draft", index=True)
    created_at: Mapped[datetime.datetime] = _now()


class Song(Base):
    """A song, and the sketch that it was made from."""

    __tablename__ = "songs"
    __table_args__ = (
        sa.CheckConstraint("duration_seconds >= 0", name="duration_not_negative"),
        sa.Index(None, "status", "created_at"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=sa.text("gen_random_uuid()"))
    number: Mapped[int] = mapped_column(sa.BigInteger, server_default=song_number.next_value(), unique=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"), index=True)
    title: Mapped[str] = mapped_column(sa.String(300))
    lyrics: Mapped[str | None] = mapped_column(sa.Text)
    style: Mapped[str | None] = mapped_column(sa.Text)
    status: Mapped[str] = mapped_column(sa.Enum(*SONG_STATUSES, name="song_status"), server_default="draft")
    duration_seconds: Mapped[decimal.Decimal | None] = mapped_column(sa.Numeric(7, 2))
    details: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    sketch_id: Mapped[uuid.UUID | None] = mapped_column(
        sa.ForeignKey("song_sketches.id", ondelete="SET NULL"), index=True
    )
    created_at: Mapped[datetime.datetime] = _now()
    updated_at: Mapped[datetime.datetime] = _now()

    user: Mapped[User] = relationship(lazy="joined")
    sketch: Mapped[SongSketch | None] = relationship(lazy="select")


class LyricParsingRule(Base):
    """A pattern in lyrics and what takes its place (Base64 since revision 234ea0f4b6c3)."""

    __tablename__ = "lyric_parsing_rules"
    __table_args__ = (sa.Index(None, "active", "position"),)

    id: Mapped[int] = mapped_column(sa.Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(200))
    description: Mapped[str | None] = mapped_column(sa.Text)
    pattern: Mapped[str] = mapped_column(sa.Text)
    replacement: Mapped[str | None] = mapped_column(sa.Text)
    active: Mapped[bool] = mapped_column(server_default=sa.true())
    position: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[datetime.datetime] = _now()
