"""pg_clone: a copy that is one, with all that hangs on the entry; refused in words, and nothing left where it fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from ansible.module_utils.alembic_recovery import neighbours

from replica.databases import AppDatabase
from replica.postgres import SUPERUSER
from tests.support.evidence import Witness
from tests.support.modules import run_module
from tests.support.stacks import database_options, witness_of

RUN = "20251021t031500z_7f3a"
# What PostgreSQL gives nobody by itself, and no copy gets: one of each kind.
DECORATION = (
    "create role app_ro nologin",
    "create role app_manager nologin",
    "alter database {db} set statement_timeout = '30s'",
    'alter database {db} set search_path to "$user", public, pg_catalog, "a, b", "c""d"',
    "alter database {db} set myapp.flag = 'a''b,c'",
    'alter database {db} set "myapp"."path" = \'C:\\x=1\'',
    "alter database {db} set DateStyle = 'SQL, DMY'",
    "alter role aiuser in database {db} set lock_timeout = '10s'",
    "alter role app_ro in database {db} set search_path = ''",
    "revoke connect on database {db} from public",
    "revoke create on database {db} from aiuser",
    "grant connect on database {db} to app_manager with grant option",
    "set role app_manager; grant connect on database {db} to app_ro; reset role",
    "comment on database {db} is 'it''s prod'",
    "alter database {db} connection limit 77",
)
# Read without the product's code; the name is taken out of what has it in it.
ENTRY = """
select pg_get_userbyid(datdba), encoding, datcollate, datctype, dattablespace, datconnlimit, datistemplate,
       (select array_agg(x::text order by x::text) from unnest(datacl) x), shobj_description(oid, 'pg_database'),
       (select array_agg(coalesce(r.rolname, '*') || ':' || s.setconfig::text order by r.rolname nulls first)
        from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole where s.setdatabase = d.oid)
from pg_database d where datname = '{name}'
"""


def admin(database: AppDatabase, **changes: Any) -> dict[str, Any]:
    """The option `database` with a role that may make databases."""
    return database_options(database, admin_user=SUPERUSER, **changes)


def clone(database: AppDatabase, kind: str = "new", /, *, check: bool = False, **more: Any) -> dict[str, Any]:
    """Run the module."""
    options = {"database": admin(database), "clone": f"{database.name}_{kind}_{RUN}"}
    return run_module("pg_clone", {**options, **more}, check=check)


def names(database: AppDatabase) -> list[str]:
    """The databases of the server."""
    return [row[0] for row in Witness(database.server.conninfo()).query("select datname from pg_database order by 1")]


@pytest.fixture
def beside(broken: AppDatabase) -> Iterator[Witness]:
    """The server, asked beside the database; what tests make in it goes with them."""
    before = names(broken)
    witness = Witness(broken.server.conninfo())
    yield witness
    for name in set(names(broken)) - set(before):
        witness.execute(f'alter database "{name}" is_template false', f'drop database "{name}" with (force)')


@pytest.fixture
def decorated(broken: AppDatabase, beside: Witness) -> Iterator[AppDatabase]:
    """A database with something of each kind on its entry."""
    beside.execute(*(statement.format(db=broken.name) for statement in DECORATION))
    yield broken
    for name in {broken.name, f"{broken.name}_new_{RUN}"} & set(names(broken)):
        beside.execute(f"alter database {name} allow_connections false", f'drop database "{name}" with (force)')
    beside.execute("drop role app_ro", "drop role app_manager")


def test_check_real_check_real(broken: AppDatabase, beside: Witness) -> None:
    before, entry = witness_of(broken).look(), beside.query(ENTRY.format(name=broken.name))
    there, target = names(broken), f"{broken.name}_new_{RUN}"

    planned = clone(broken, check=True)
    assert planned["changed"] is True, planned
    assert (planned["clone"], planned["oid"]) == (target, None)
    assert names(broken) == there

    done = clone(broken)
    assert done["changed"] is True, done
    assert names(broken) == sorted([*there, target])
    oid, size = beside.query(f"select oid::bigint, pg_database_size(oid) from pg_database where datname = '{target}'")[
        0
    ]
    assert (done["clone"], done["oid"], done["size_bytes"]) == (target, oid, size)
    assert done["source_oid"] == planned["source_oid"]
    assert done["source_oid"] == beside.value(f"select oid::bigint from pg_database where datname = '{broken.name}'")
    assert 0 < done["seconds"] < 60

    for check in (True, False):
        again = clone(broken, check=check)
        assert again["failed"] is True
        assert f"A database {target} is there already (oid {oid})" in again["msg"]
    copied = Witness(broken.server.conninfo(target)).look()
    assert (copied.catalog, copied.rows, copied.content, copied.sequences) == (
        before.catalog, before.rows, before.content, before.sequences,
    )  # fmt: skip
    assert beside.query(ENTRY.format(name=broken.name)) == entry == beside.query(ENTRY.format(name=target))
    after = witness_of(broken).look()
    assert (after.catalog, after.rows, after.content) == (before.catalog, before.rows, before.content)


def test_absent_check_real_check_real(broken: AppDatabase, beside: Witness) -> None:
    there = names(broken)
    oid = clone(broken)["oid"]
    with psycopg.connect(broken.server.conninfo(f"{broken.name}_new_{RUN}")) as somebody:
        planned = clone(broken, check=True, state="absent")
        assert (planned["changed"], planned["oid"]) == (True, oid)
        assert names(broken) != there
        somebody.execute("select 1")

        done = clone(broken, state="absent")
        assert (done["changed"], done["oid"]) == (True, oid)
        assert names(broken) == there
        with pytest.raises(psycopg.OperationalError):
            somebody.execute("select 1")
    for check in (True, False):
        assert clone(broken, check=check, state="absent")["changed"] is False


def test_row_49_all_that_hangs_on_the_entry(decorated: AppDatabase, beside: Witness) -> None:
    """Fault 49."""
    assert clone(decorated)["changed"] is True
    entry = beside.query(ENTRY.format(name=decorated.name))
    copied = beside.query(ENTRY.format(name=f"{decorated.name}_new_{RUN}"))
    assert copied == entry
    assert entry[0][5:7] == (77, False)
    assert set(entry[0][7]) == {
        "aiuser=Tc/aiuser", "=T/aiuser", "app_manager=c*/aiuser", "app_ro=c/app_manager",
    }  # fmt: skip
    assert "it's prod" in entry[0]
    with psycopg.connect(decorated.server.conninfo(f"{decorated.name}_new_{RUN}")) as connection:
        path = connection.execute("select current_setting('search_path'), current_setting('myapp.flag')").fetchone()
    assert path == ('"$user", public, pg_catalog, "a, b", "c""d"', "a'b,c")


def test_a_closed_database_is_copied_into_an_open_one(broken: AppDatabase, beside: Witness) -> None:
    """In a run the database is closed before it is copied."""
    beside.execute(f"alter database {broken.name} allow_connections false")
    assert clone(broken)["changed"] is True
    rows = beside.query(f"select datname, datallowconn from pg_database where datname like '{broken.name}%' order by 1")
    assert rows == [(broken.name, False), (f"{broken.name}_new_{RUN}", True)]


def test_a_setting_that_cannot_be_given_leaves_nothing(broken: AppDatabase, beside: Witness) -> None:
    """The owner may copy its database, but not give it a setting that only a superuser may: known before."""
    beside.execute(f"alter database {broken.name} set log_statement = 'all'")
    there = names(broken)
    refused = clone(broken, database=database_options(broken))
    assert refused.get("failed") is True, refused
    assert "aiuser may not give a copy these settings of" in refused["msg"]
    assert "log_statement" in refused["msg"]
    assert names(broken) == there


class TestRefusals:
    @pytest.mark.parametrize("state", ["present", "absent"])
    @pytest.mark.parametrize("kind", ["itself", "old", "aside", "songs", "template1", "a person's"])
    def test_s20_a_name_that_is_not_ours(self, broken: AppDatabase, beside: Witness, state: str, kind: str) -> None:
        target = {"itself": broken.name, "template1": "template1", "a person's": f"{broken.name}_new_songs"}.get(
            kind, f"{broken.name}_{kind}_{RUN}"
        )
        there = names(broken)
        refused = clone(broken, clone=target, state=state)
        assert refused.get("failed") is True, refused
        assert f"{target!r} is not the name of a copy of {broken.name}" in refused["msg"]
        assert names(broken) == there

    def test_somebody_is_connected(self, broken: AppDatabase, beside: Witness) -> None:
        there = names(broken)
        with psycopg.connect(broken.conninfo, application_name="the api") as somebody:
            somebody.execute("select 1")
            # In check mode nobody has closed it yet.
            assert clone(broken, check=True)["changed"] is True
            refused = clone(broken)
            assert refused.get("failed") is True, refused
            assert f"No copy of {broken.name} can be made while somebody is connected to it: the api" in refused["msg"]
            assert "idle in transaction" in refused["msg"]
            assert [row["application"] for row in refused["sessions"]] == ["the api"]
            assert somebody.execute("select 1").fetchone() == (1,)
        assert names(broken) == there

    def test_who_goes_by_himself_is_waited_for(self, broken: AppDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
        look = neighbours.look
        with psycopg.connect(broken.conninfo, application_name="pg_isready") as passing:

            def looked(*arguments: Any) -> neighbours.Look:
                seen = look(*arguments)
                assert seen.sessions or passing.closed, "it is there when it is looked for first"
                passing.close()
                return seen

            monkeypatch.setattr(neighbours, "look", looked)
            assert clone(broken)["changed"] is True

    def test_row_39_there_is_no_room(
        self, broken: AppDatabase, beside: Witness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ansible.module_utils.alembic_recovery import neighbours

        monkeypatch.setattr(neighbours, "free_bytes", lambda *_: (1 << 20, ""))
        there = names(broken)
        for check in (True, False):
            refused = clone(broken, check=check)
            assert f"There is no room for a copy of {broken.name}" in refused["msg"]
            assert "1.0 MiB are free" in refused["msg"]
            assert len(refused["impossible"]) == 1
        assert names(broken) == there

    def test_unknown_room_is_a_warning(
        self, broken: AppDatabase, beside: Witness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Ansible tells a process the same warning only once, and another test may have got it.
        warned: list[str] = []
        monkeypatch.setattr("ansible.module_utils.basic.AnsibleModule.warn", lambda _self, text: warned.append(text))
        beside.execute("alter role aiuser createdb")
        try:
            done = clone(broken, database=database_options(broken))
        finally:
            beside.execute("alter role aiuser createdb")
        assert done.get("changed") is True, done
        assert ["may not know where the server keeps its data" in line for line in warned] == [True]

    def test_a_role_that_may_not_make_databases(self, broken: AppDatabase, beside: Witness) -> None:
        beside.execute("alter role aiuser nocreatedb")
        try:
            refused = clone(broken, database=database_options(broken))
        finally:
            beside.execute("alter role aiuser createdb")
        assert "aiuser may not make or rename databases. Set admin_user" in refused["msg"]

    def test_a_database_that_is_not_there(self, broken: AppDatabase, beside: Witness) -> None:
        refused = clone(broken, database=admin(broken, name="aiproxx"), clone=f"aiproxx_new_{RUN}")
        assert refused["impossible"] == ["There is no database aiproxx in this server."]

    def test_an_invalid_database_is_dropped(self, broken: AppDatabase, beside: Witness) -> None:
        """What an interrupted DROP DATABASE leaves."""
        clone(broken)
        target = f"{broken.name}_new_{RUN}"
        beside.execute(f"update pg_database set datconnlimit = -2 where datname = '{target}'")
        assert clone(broken, state="absent")["changed"] is True
        assert target not in names(broken)


def test_a_copy_of_a_copy(broken: AppDatabase, beside: Witness) -> None:
    clone(broken, "scratch")
    done = clone(broken, "before", source=f"{broken.name}_scratch_{RUN}")
    assert done["changed"] is True, done
    assert f"{broken.name}_before_{RUN}" in names(broken)
    refused = clone(broken, "new", source="template1")
    assert "is not the name of a copy of" in refused["msg"]
