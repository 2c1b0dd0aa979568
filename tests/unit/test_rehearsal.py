"""The throwaway server: its roles, and how it is made."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import rehearsal


def role(name: str, oid: int = 16400, settings: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    flags = dict.fromkeys(
        ("rolsuper", "rolcreaterole", "rolcreatedb", "rolcanlogin", "rolreplication", "rolbypassrls"), False
    )
    return {
        "oid": oid, "name": name, **flags, "rolinherit": True, "rolconnlimit": -1, "settings": list(settings),
        **changes,
    }  # fmt: skip


def member(role: str, of: str, **changes: Any) -> dict[str, Any]:
    return {
        "role": role, "member": of, "admin_option": False, "inherit_option": None, "set_option": None, **changes,
    }  # fmt: skip


def statements(**parts: Any) -> list[str]:
    return rehearsal.role_statements({"roles": [], "members": [], "everybody": [{"settings": []}], **parts})


def test_roles() -> None:
    roles = [
        role("boss", 10, ("work_mem=8MB",)),
        role('a"pp', rolcanlogin=True, rolcreatedb=True, rolconnlimit=5, settings=('search_path="$user", x',)),
    ]
    flags = "nosuperuser inherit nocreaterole createdb login noreplication nobypassrls"
    assert statements(roles=roles, everybody=[{"settings": ["a.b=c'd"]}]) == [
        f'create role "a""pp" {flags} connection limit 5',
        """alter role "boss" set "work_mem" to '8MB'""",
        """alter role "a""pp" set "search_path" to '$user', 'x'""",
        """alter role all set "a"."b" to 'c''d'""",
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param(member("r", "m"), 'grant "r" to "m"', id="before 16"),
        pytest.param(member("r", "m", admin_option=True), 'grant "r" to "m" with admin option', id="before 16, admin"),
        pytest.param(
            member("r", "m", inherit_option="false", set_option="true"),
            'grant "r" to "m" with admin false, inherit false, set true',
            id="16",
        ),
    ],
)
def test_memberships(row: dict[str, Any], expected: str) -> None:
    assert statements(members=[row]) == [expected]


@pytest.mark.parametrize(
    ("template1", "expected"),
    [
        pytest.param({"provider": "c"}, [], id="libc"),
        pytest.param(
            {"provider": "i", "locale": "de-AT", "icu_rules": None},
            ["--locale-provider=icu", "--icu-locale=de-AT"],
            id="icu",
        ),
        pytest.param(
            {"provider": "i", "locale": "und", "icu_rules": "&a < b"},
            ["--locale-provider=icu", "--icu-locale=und", "--icu-rules=&a < b"],
            id="icu with rules",
        ),
        pytest.param(
            {"provider": "b", "locale": "C.UTF-8"},
            ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"],
            id="builtin",
        ),
    ],
)
def test_initdb_options(template1: dict[str, Any], expected: list[str]) -> None:
    like = {"encoding": "UTF8", "datcollate": "C", "datctype": "C.UTF-8", **template1}
    assert rehearsal.initdb_options(like, "boss") == [
        "--pgdata=/var/lib/postgresql/rehearsal", "--username=boss", "--auth=trust", "--no-sync", "--encoding=UTF8",
        "--lc-collate=C", "--lc-ctype=C.UTF-8", *expected,
    ]  # fmt: skip


def test_server_options_of_ours_win() -> None:
    words = rehearsal.server_options({"shared_preload_libraries": "pg_cron, x", "fsync": "on"})
    assert words[:2] == ["-D", "/var/lib/postgresql/rehearsal"]
    assert "shared_preload_libraries=pg_cron, x" in words
    assert "fsync=off" in words
    assert "fsync=on" not in words
