"""What was written since: when it can be told, and how it is said."""

from __future__ import annotations

import pytest
from ansible.module_utils.alembic_recovery import sql, written
from ansible.module_utils.alembic_recovery.errors import DatabaseError
from ansible.module_utils.alembic_recovery.written import Table


@pytest.mark.parametrize(
    ("since", "now", "low"),
    [
        pytest.param("700", 701, 700, id="the last transaction"),
        pytest.param("701", 701, 701, id="nothing since"),
        pytest.param(str(2**32 + 5), 2**32 + 9, 5, id="after a round"),
        pytest.param(str(2**32 - 5), 2**32 + 9, 2**32 - 5, id="a round ends in between"),
        pytest.param("700", 700 + 2**31 - 2, 700, id="as far as can be told"),
    ],
)
def test_distance(since: str, now: int, low: int) -> None:
    assert written.check_distance(since, now) == low


@pytest.mark.parametrize(
    ("since", "now", "said"),
    [
        pytest.param("700", 700 + 2**31 - 1, "can no longer be told", id="too long ago"),
        pytest.param("702", 701, "still to come", id="still to come"),
        pytest.param("7'; drop", 701, "is not the number of a transaction", id="hostile"),
        pytest.param("-7", 701, "is not the number of a transaction", id="negative"),
        pytest.param("", 701, "is not the number of a transaction", id="nothing"),
    ],
)
def test_distance_refused(since: str, now: int, said: str) -> None:
    with pytest.raises(DatabaseError, match=said):
        written.check_distance(since, now)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (Table("public.songs", 123, 3, 3, True), "songs: 3 rows written since, 3 more than then."),
        (Table("app.songs", 120, 1, 0, True), "app.songs: 1 row written since, as many as then."),
        (Table("public.songs", 118, 0, -2, False), "songs: no rows written since, 2 fewer than then."),
        (Table("public.songs", 118, 2, None, False), "songs: 2 rows written since."),
    ],
)
def test_sentence(table: Table, said: str) -> None:
    assert written.sentence(table) == said


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('{"a": 1}', '{"a": 1}'),
        (r'{"a": "x\\ny"}', r'{"a": "x\ny"}'),
        (r'{"a": "\\\\"}', r'{"a": "\\"}'),
        (r'{"a": "\\\\n"}', r'{"a": "\\n"}'),
    ],
)
def test_from_copy(line: str, text: str) -> None:
    assert sql.from_copy(line) == text
