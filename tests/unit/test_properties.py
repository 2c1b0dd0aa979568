"""What hangs on a database's entry: the SQL for it, and the sentences about differences."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import properties


def grant(role: str | None, privilege: str, *, grantable: bool = False, by: str = "app") -> dict[str, Any]:
    return {"role": role, "privilege": privilege, "grantable": grantable, "by": by}


PLAIN = [grant(None, "CONNECT"), grant(None, "TEMPORARY"), *(grant("app", p) for p in ("CONNECT", "CREATE"))]


EMPTY = """create database "new" template "template0" owner "app" encoding 'UTF8' lc_collate 'C' lc_ctype 'C.UTF-8'"""


def of_database(**changes: Any) -> dict[str, Any]:
    """The properties of a plain database."""
    return {
        "oid": 5, "name": "shop", "owner": "app", "encoding": "UTF8", "datcollate": "C", "datctype": "C.UTF-8",
        "provider": "c", "locale": None, "icu_rules": None, "tablespace": "pg_default", "connection_limit": -1,
        "allow_connections": True, "is_template": False, "acl": PLAIN, "plain_acl": False,
        "comment": None, "labels": [], "settings": [],
        **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        pytest.param("statement_timeout=30s", """set "statement_timeout" to '30s'""", id="plain"),
        pytest.param(
            'search_path="$user", public, pg_catalog',
            """set "search_path" to '$user', 'public', 'pg_catalog'""",
            id="list",
        ),
        pytest.param('search_path=""', """set "search_path" to ''""", id="an empty name"),
        pytest.param("search_path=", """set "search_path" to ''""", id="an empty list"),
        pytest.param('search_path="a, b", "c""d"', """set "search_path" to 'a, b', 'c"d'""", id="quoted names"),
        pytest.param("myapp.flag=a'b,c", """set "myapp"."flag" to 'a''b,c'""", id="custom with a quote and a comma"),
        pytest.param("DateStyle=ISO, DMY", """set "DateStyle" to 'ISO, DMY'""", id="a comma that is no list"),
        pytest.param("myapp.path=C:\\x=1", """set "myapp"."path" to E'C:\\\\x=1'""", id="backslash and equals sign"),
        pytest.param("myapp.empty=", """set "myapp"."empty" to ''""", id="empty"),
    ],
)
def test_setting_clause(setting: str, expected: str) -> None:
    assert properties.setting_clause(setting) == expected


@pytest.mark.parametrize(
    ("like", "more", "expected"),
    [
        pytest.param(
            {},
            {"server_version_num": 130004},
            f"""{EMPTY} """
            """allow_connections true connection limit -1""",
            id="13, libc",
        ),
        pytest.param(
            {"connection_limit": 77},
            {"server_version_num": 150018},
            f"""{EMPTY} """
            """locale_provider libc allow_connections true connection limit 77""",
            id="15, libc: template0 may have another provider",
        ),
        pytest.param(
            {"provider": "i", "locale": "de-AT", "icu_rules": "&a < b'"},
            {"server_version_num": 160002},
            f"""{EMPTY} """
            """locale_provider icu icu_locale 'de-AT' icu_rules '&a < b''' """
            """allow_connections true connection limit -1""",
            id="16, icu with rules",
        ),
        pytest.param(
            {"provider": "b", "locale": "C.UTF-8"},
            {"server_version_num": 180000, "connection_limit": 5},
            f"""{EMPTY} """
            """locale_provider builtin builtin_locale 'C.UTF-8' """
            """allow_connections true connection limit 5""",
            id="18, builtin, another limit",
        ),
        pytest.param(
            {"tablespace": 'fa"st'},
            {"server_version_num": 150018, "template": "shop", "strategy": "file_copy"},
            """create database "new" template "shop" owner "app" """
            """allow_connections true connection limit -1 strategy file_copy""",
            id="15, a copy: it goes where its template is",
        ),
        pytest.param(
            {"tablespace": 'fa"st'},
            {"server_version_num": 140000},
            f"""{EMPTY} tablespace "fa""st" allow_connections true connection limit -1""",
            id="14, another tablespace",
        ),
        pytest.param(
            {},
            {"server_version_num": 140000, "template": "shop", "strategy": "file_copy"},
            """create database "new" template "shop" owner "app" """
            """allow_connections true connection limit -1""",
            id="14, a copy: it knows no strategies",
        ),
    ],
)
def test_create_statement(like: dict[str, Any], more: dict[str, Any], expected: str) -> None:
    assert properties.create_statement(of_database(**like), "new", "app", **more) == expected


def test_who_may_grant_further_comes_before_what_he_has_granted() -> None:
    acl = [
        grant("reader", "CONNECT", by="manager"),
        grant("manager", "CONNECT", grantable=True),
        grant(None, "TEMPORARY"),
    ]
    assert properties.access_statements(of_database(acl=acl), 'n"ew') == [
        'revoke all on database "n""ew" from public, "app"',
        'grant CONNECT on database "n""ew" to "manager" with grant option',
        'grant TEMPORARY on database "n""ew" to public',
        'set role "manager"',
        'grant CONNECT on database "n""ew" to "reader"',
        "reset role",
    ]


def test_setting_statements() -> None:
    source = of_database(
        settings=[{"role": None, "settings": ["a.b=c"]}, {"role": "ro", "settings": ["lock_timeout=10s"]}],
        comment="it's prod",
        labels=[{"provider": "selinux", "label": "x"}],
        connection_limit=77,
        is_template=True,
    )
    assert properties.setting_statements(source, "new") == [
        """alter database "new" set "a"."b" to 'c'""",
        """alter role "ro" in database "new" set "lock_timeout" to '10s'""",
        """comment on database "new" is 'it''s prod'""",
        """security label for "selinux" on database "new" is 'x'""",
        'alter database "new" connection limit 77',
        'alter database "new" is_template true',
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, [], id="same"),
        pytest.param({"oid": 7, "name": "other", "allow_connections": False}, [], id="what differs by nature"),
        pytest.param({"connection_limit": 5}, ["Its connection limit is 5, not -1."], id="limit"),
        pytest.param({"comment": "x"}, ["Its comment is 'x', not None."], id="comment"),
        pytest.param(
            {"acl": [*PLAIN[1:], grant("ro", "CONNECT")]},
            [
                "Missing: CONNECT for PUBLIC, granted by app.",
                "Too much: CONNECT for ro, granted by app.",
            ],
            id="grants",
        ),
        pytest.param(
            {"settings": [{"role": None, "settings": ["a.b=c"]}]},
            ["Too much: the setting a.b=c of the database."],
            id="setting",
        ),
    ],
)
def test_differences(changes: dict[str, Any], expected: list[str]) -> None:
    assert properties.differences(of_database(), of_database(**changes)) == expected


def test_roles() -> None:
    source = of_database(
        acl=[grant(None, "CONNECT"), grant("manager", "CONNECT", by="app")],
        settings=[{"role": None, "settings": []}, {"role": "ro", "settings": []}],
    )
    assert properties.roles(source) == {"app", "manager", "ro"}


def test_settings_that_only_a_superuser_can_carry_over() -> None:
    source = {
        "settings": [
            {"role": None, "settings": ["search_path=public", "log_statement=all", "myapp.flag=x", "TimeZone=UTC"]},
            {"role": "app", "settings": ["lock_timeout=10s"]},
            {"role": "other", "settings": ["lock_timeout=10s"]},
        ]
    }
    contexts = {"search_path": "user", "log_statement": "superuser", "timezone": "user", "lock_timeout": "user"}

    assert properties.not_carried(source, "app", contexts) == ["log_statement", "myapp.flag", "lock_timeout of other"]
