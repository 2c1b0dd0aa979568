"""What a backup needs of a server, and whether it may be restored there."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import neighbours, restore
from ansible.module_utils.alembic_recovery.errors import StackError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", [], id="nothing"),
        pytest.param("app=arwdDxt/app", ["app", "app"], id="the owner"),
        pytest.param("app=UC/app,=U/app", ["app", "app", "app"], id="everybody"),
        pytest.param("ro=r*w/app", ["ro", "app"], id="grant option"),
        pytest.param('"we""ird, o=ne"=r/"a/b"', ['we"ird, o=ne', "a/b"], id="quoted"),
        pytest.param('"=x/y"=U/app,ro=U/app', ["=x/y", "app", "ro", "app"], id="a name like an item"),
    ],
)
def test_roles_of_acl(text: str, expected: list[str]) -> None:
    assert restore.roles_of_acl(text) == expected


def test_needed_roles() -> None:
    structure = {
        "schemas": [{"name": "public", "owner": "boss", "acl": "boss=UC/boss,=U/boss"}],
        "relations": [{"schema": "public", "name": "songs", "owner": "app", "acl": "ro=r/app"}],
        "functions": [{"name": "f(integer)", "owner": "coder"}],
        "default_privileges": [{"role": "maker", "schema": "", "type": "r", "acl": "reader=r/maker"}],
        "extensions": [{"name": "plpgsql", "version": "1.0"}],
        "policies": [{"schema": "public", "relation": "songs", "name": "p"}],
    }
    manifest = {"structure": structure, "database": {"name": "shop", "properties": {"owner": "dba"}}}
    assert restore.needed_roles(manifest) == {
        "boss": "public", "app": "public.songs", "ro": "public.songs", "coder": "f(integer)",
        "maker": "default_privileges", "reader": "default_privileges", "dba": "the database shop",
    }  # fmt: skip


WHO = {"server_version": "15.18", "server_version_num": 150018, "system_identifier": "7"}


@pytest.mark.parametrize(
    ("source", "allowed", "refusal"),
    [
        pytest.param({}, {}, "", id="the same"),
        pytest.param({"server_version_num": 140001}, {}, "", id="from an older server"),
        pytest.param({"server_version_num": 150099}, {}, "", id="from a newer minor version"),
        pytest.param(
            {"server_version_num": 160000, "server_version": "16.0"},
            {"other_cluster": True, "other_database": True},
            "This is a backup of PostgreSQL 16.0; a server of version 15.18 cannot read it.",
            id="from a newer server",
        ),
        pytest.param({"name": "x"}, {}, "This is a backup of database x, not of shop.", id="of another database"),
        pytest.param({"name": "x"}, {"other_database": True}, "", id="of another database, meant"),
        pytest.param({"system_identifier": "8"}, {}, "from another server (system identifier 8", id="from another"),
        pytest.param({"system_identifier": "8"}, {"other_cluster": True}, "", id="from another server, meant"),
    ],
)
def test_check(source: dict[str, Any], allowed: dict[str, bool], refusal: str) -> None:
    manifest = {"database": {"name": "shop", **WHO, **source}}
    options = {"other_database": False, "other_cluster": False, **allowed}
    if not refusal:
        restore.check(manifest, WHO, "shop", **options)
        return
    with pytest.raises(StackError) as raised:
        restore.check(manifest, WHO, "shop", **options)
    assert refusal in raised.value.message


@pytest.mark.parametrize(
    ("keeps_wal", "expected"),
    [
        pytest.param(True, 110 + 150 + 64, id="WAL is kept"),
        pytest.param(False, 110 + 40 + 64, id="WAL is used again"),
    ],
)
def test_room_for_restored(keeps_wal: bool, expected: int) -> None:
    who = {"keeps_wal": keeps_wal, "max_wal_bytes": 20 << 20}
    assert neighbours.room_for_restored(who, 100 << 20) == pytest.approx(expected << 20, rel=1e-6)


@pytest.mark.parametrize(
    ("into", "other_cluster", "accepted"),
    [
        pytest.param("shop_restored_20251021t031500z_7f3a", False, True, id="restored"),
        pytest.param("shop_scratch_20251021t031500z_7f3a", False, True, id="scratch"),
        pytest.param("other_restored_20251021t031500z_7f3a", False, True, id="a copy of what was backed up"),
        pytest.param("third_restored_20251021t031500z_7f3a", False, False, id="a copy of a third one"),
        pytest.param("shop_old_20251021t031500z_7f3a", False, False, id="one that is kept"),
        pytest.param("shop_new_20251021t031500z_7f3a", True, False, id="one that is swapped in"),
        pytest.param("shop_restored", False, False, id="a name that a person gave"),
        pytest.param("other", False, False, id="its own name in the same server"),
        pytest.param("other", True, True, id="its own name in another server"),
        pytest.param("shop", True, False, id="the name of another one"),
    ],
)
def test_check_into(into: str, other_cluster: bool, accepted: bool) -> None:
    """`shop` is the application's database, `other` was backed up."""
    manifest = {"database": {"name": "other"}}
    if accepted:
        restore.check_into(manifest, "shop", into, other_cluster=other_cluster)
        return
    with pytest.raises(StackError) as raised:
        restore.check_into(manifest, "shop", into, other_cluster=other_cluster)
    assert "is not the name of a restored copy of other." in raised.value.message
