"""Which rows a way back has lost: what is compared, and how two ordered streams are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import lossy_rows, round_trip
from ansible.module_utils.alembic_recovery.round_trip import Difference

RULES, SONGS = "public.rules", "public.songs"


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        pytest.param([Difference()], {}, id="nothing is lost"),
        pytest.param([Difference([(RULES, "text")])], {RULES: {"text"}}, id="a column"),
        pytest.param(
            [Difference([(RULES, "text")]), Difference([(RULES, "id"), (SONGS, "title")])],
            {RULES: {"id", "text"}, SONGS: {"title"}},
            id="by two revisions",
        ),
        pytest.param([Difference([], {SONGS: 2})], {SONGS: set()}, id="rows alone"),
        pytest.param([Difference([], {}, {"indexes": {"added": [], "removed": ["x"]}})], {}, id="an index"),
    ],
)
def test_tables(differences: list[Difference], expected: dict[str, set[str]]) -> None:
    undone = [round_trip.judged(f"r{number}", found) for number, found in enumerate(differences)]
    assert lossy_rows.tables(undone) == expected


def test_an_impossible_step_has_none() -> None:
    assert lossy_rows.tables([round_trip.impossible("r1", "It raises.")]) == {}


def stream(text: str) -> Iterator[Any]:
    """`1a 2b` are rows with the keys 1 and 2."""
    return ((tuple(word[:-1].split("/")), word[-1]) for word in text.split())


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        pytest.param("", "", "", id="both empty"),
        pytest.param("1a 2b", "1a 2b", "", id="the same"),
        pytest.param("1a 2b 3c", "1a 2x 3c", "2", id="other contents"),
        pytest.param("1a 2b 3c", "2b", "1 3", id="lost at both ends"),
        pytest.param("2b", "1a 2b 3c", "1 3", id="come at both ends"),
        pytest.param("1a 2b", "", "1 2", id="all lost"),
        pytest.param("", "1a", "1", id="come into an empty table"),
        pytest.param("1a 10b 2c", "1a 10b 2x", "2", id="keys are texts"),
        pytest.param("1/1a 1/2b 2/1c", "1/1a 2/1x", "1/2 2/1", id="keys of two columns"),
        pytest.param("za \ufffda \U0001f600a", "za \U0001f600a", "\ufffd", id="in the order of code points"),
    ],
)
def test_differing(one: str, other: str, expected: str) -> None:
    left, right = stream(one), stream(other)
    assert list(lossy_rows.differing(left, right)) == [tuple(word.split("/")) for word in expected.split()]
    # A stream that is not read to its end would leave its session in the middle of an answer.
    assert (next(left, None), next(right, None)) == (None, None)


def test_names_in_a_query_are_quoted() -> None:
    query = lossy_rows.rows_query('o"ne', "Two", ["k 1", "k2"], {"b", "a;"})
    assert query == (
        'select array["k 1"::text, "k2"::text] as key, '
        'hashtextextended(row("a;"::text, "b"::text)::text collate "C", 0)::text as content '
        'from only "o""ne"."Two" order by convert_to("k 1"::text, \'UTF8\'), convert_to("k2"::text, \'UTF8\')'
    )
