"""The product of versions: which there are, which go together, and which of them cover all pairs."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from pathlib import Path
from urllib.parse import quote

from replica.postgres import EmbeddedPostgres
from tests.compat.environments import composed, packages
from tests.support.layout_app import PASSWORD, ROLE

#: The packages of the drivers.
DRIVERS = {
    "psycopg2": "psycopg2-binary==2.9.13",
    "psycopg": "psycopg[binary]==3.3.9",
    "asyncpg": "asyncpg==0.32.0",
    "pg8000": "pg8000==1.31.6",
}
# What all versions of Alembic and SQLAlchemy need.
_NEEDED = ("Mako==1.4.3", "typing_extensions==4.16.0", "greenlet==3.5.6")
ALEMBIC = ("1.7.7", "1.13.3", "1.16.5", "1.20.1")
SQLALCHEMY = ("1.4.54", "2.0.58", "2.1.9")
#: "distribution" is what the distribution's package `postgresql` brings.
POSTGRESQL = ("16", "18", "distribution")


@dataclass(frozen=True)
class Combination:
    """One of each."""

    alembic: str
    sqlalchemy: str
    driver: str
    postgresql: str

    def __str__(self) -> str:
        """Return its name as that of a test."""
        return f"alembic {self.alembic}, sqlalchemy {self.sqlalchemy}, {self.driver}, postgresql {self.postgresql}"

    @property
    def impossible(self) -> str | None:
        """Why no application can use it, None if one can."""
        if self.sqlalchemy.startswith("1."):
            if self.alembic == ALEMBIC[-1]:
                return f"Alembic {self.alembic} needs SQLAlchemy 2.0 or later"
            if self.driver == "psycopg":
                return "SQLAlchemy 1.4 has no dialect for psycopg 3"
        return None

    @property
    def python(self) -> Path:
        """The interpreter of an environment with this Alembic, this SQLAlchemy, and all drivers."""
        names = (f"alembic-{self.alembic}", f"sqlalchemy-{self.sqlalchemy}")
        places = [
            packages(names[0], [f"alembic=={self.alembic}"], alone=True),
            packages(names[1], [f"SQLAlchemy=={self.sqlalchemy}"], alone=True),
            packages("drivers", [*DRIVERS.values(), *_NEEDED]),
        ]
        return composed("-".join(names), places) / "bin" / "python"

    def url(self, server: EmbeddedPostgres, database: str) -> str:
        """Return the address of a database for SQLAlchemy."""
        socket = {"pg8000": f"unix_sock={server.socket_dir}/.s.PGSQL.5432"}.get(self.driver)
        where = socket or f"host={server.socket_dir}"
        return f"postgresql+{self.driver}://{ROLE}:{quote(PASSWORD, safe='')}@/{database}?{where}"


def whole() -> list[Combination]:
    """Return the product, also what is impossible."""
    return [
        Combination(alembic, sqlalchemy, driver, postgresql)
        for alembic in ALEMBIC
        for sqlalchemy in SQLALCHEMY
        for driver in DRIVERS
        for postgresql in POSTGRESQL
    ]


def pairwise() -> list[Combination]:
    """Return possible combinations in which each possible pair of two versions is, in few.

    Always the one that adds most, the first of them where several do. (allpairspy 2.5.1 leaves pairs out where a filter
    says what is impossible.)
    """
    possible = [one for one in whole() if one.impossible is None]
    missing = set().union(*map(pairs, possible))
    chosen = []
    while missing:
        best = max(possible, key=lambda one: len(pairs(one) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def pairs(combination: Combination) -> set[tuple[tuple[int, str], tuple[int, str]]]:
    """Return the pairs of versions in a combination, each with the number of its axis."""
    values = list(enumerate(astuple(combination)))
    return {(one, other) for one in values for other in values if one[0] < other[0]}
