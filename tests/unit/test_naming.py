"""Names of databases: within PostgreSQL's limit, told apart, and read back."""

from __future__ import annotations

import pytest
from ansible.module_utils.alembic_recovery import naming

RUN = "20251021T031500Z-7f3a1c"
NAMES = ["aiproxy", "a", "we\"ird' name", "ü" * 40, "x" * 63]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", naming.KINDS)
def test_a_name_is_short_enough_and_read_back(name: str, kind: str) -> None:
    made = naming.database(name, kind, RUN)

    assert len(made.encode()) <= 63
    assert naming.kind_of(name, made) == kind
    assert naming.kind_of("other", made) is None


def test_long_names_stay_apart() -> None:
    one, other = (naming.database("x" * 62 + end, "old", RUN) for end in "ab")

    assert one != other


@pytest.mark.parametrize("run_id", ["by-hand", "X" * 64, "a.b_c-d"])
def test_a_run_of_any_name_has_a_stamp(run_id: str) -> None:
    assert naming.stamp(run_id)
    assert len(naming.stamp(run_id)) <= 24


@pytest.mark.parametrize("candidate", ["aiproxy", "aiproxy_old", "aiproxy_old_songs", "aiproxy_new_2025", "postgres"])
def test_what_a_person_has_named_is_none_of_ours(candidate: str) -> None:
    assert naming.kind_of("aiproxy", candidate) is None
