"""Names of a database's container, and where a throwaway server cannot take its place."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import isolation
from ansible.module_utils.alembic_recovery.errors import StackError

ID = "5f2c1e0a9b8d" + "0" * 52


def seen(
    networks: dict[str, Any], *, name: str = "shop-db-1", mode: str = "shop", links: Any = None, **labels: str
) -> dict[str, Any]:
    """`docker inspect` in short."""
    return {
        "Id": ID if name == "shop-db-1" else "a" * 64,
        "Name": f"/{name}",
        "Config": {"Labels": labels or None},
        "HostConfig": {"NetworkMode": mode, "Links": links},
        "NetworkSettings": {"Networks": networks},
    }


def app(networks: dict[str, Any], **more: Any) -> dict[str, Any]:
    return seen(networks, name="shop-api-1", **more)


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        pytest.param(seen({}), ["shop-db-1"], id="its own name"),
        pytest.param(seen({"bridge": {"Aliases": None}}), ["shop-db-1"], id="the default network"),
        pytest.param(
            seen(
                {"a": {"Aliases": ["db", ID[:12]]}, "b": {"Aliases": ["pg", "db"], "DNSNames": ["shop-db-1", ID[:12]]}}
            ),
            ["db", "pg", "shop-db-1"],
            id="several networks, without the id",
        ),
        pytest.param(
            seen({}, **{"com.docker.compose.service": "postgres"}), ["postgres", "shop-db-1"], id="the label of Compose"
        ),
    ],
)
def test_aliases(container: dict[str, Any], expected: list[str]) -> None:
    assert isolation.aliases(container) == expected


@pytest.mark.parametrize(
    "application",
    [
        pytest.param(app({"bridge": {}}, links=["/shop-db-1:/shop-api-1/pg", "/mq-1:/shop-api-1/mq"]), id="old"),
        pytest.param(app({"shop": {"Links": ["shop-db-1:pg", "shop-redis-1:mq"]}}), id="in a network"),
        pytest.param(app({"shop": {"Links": [f"{ID}:pg"]}}), id="to the id"),
    ],
)
def test_links_of_the_application_are_names_too(application: dict[str, Any]) -> None:
    database = seen({"bridge": {}})
    assert isolation.aliases(database, application) == ["pg", "shop-db-1"]
    isolation.check(database, application)


@pytest.mark.parametrize(
    ("database", "application"),
    [
        pytest.param(seen({"shop": {}}), None, id="the application is not known"),
        pytest.param(seen({"shop": {}, "ops": {}}), app({"web": {}, "shop": {}}), id="one of several networks"),
    ],
)
def test_it_can_be_done(database: dict[str, Any], application: dict[str, Any] | None) -> None:
    isolation.check(database, application)


@pytest.mark.parametrize(
    ("database", "application", "said"),
    [
        pytest.param(seen({"host": {}}, mode="host"), None, "container shop-db-1 has network mode host", id="db, host"),
        pytest.param(seen({"none": {}}, mode="none"), None, "container shop-db-1 has network mode none", id="db, none"),
        pytest.param(
            seen({}, mode="container:b"), None, "shop-db-1 has the network of another container", id="db, another's"
        ),
        pytest.param(
            seen({"shop": {}}), app({"host": {}}, mode="host"), "shop-api-1 has network mode host", id="app, host"
        ),
        pytest.param(
            seen({"shop": {}}), app({"none": {}}, mode="none"), "shop-api-1 has network mode none", id="app, none"
        ),
        pytest.param(
            seen({"shop": {}}),
            app({}, mode=f"container:{ID}"),
            "shop-api-1 has the network of another container",
            id="app, another's",
        ),
        pytest.param(
            seen({"data": {}}),
            app({"web": {}, "edge": {}}),
            "shop-api-1 (in edge, web) does not share a network in which containers have names with the database's, "
            "shop-db-1 (in data)",
            id="nothing shared",
        ),
        pytest.param(seen({"bridge": {}}), app({"bridge": {}}), "finds its database by an address", id="without names"),
    ],
)
def test_it_is_refused(database: dict[str, Any], application: dict[str, Any] | None, said: str) -> None:
    with pytest.raises(StackError) as refused:
        isolation.check(database, application)
    assert said in refused.value.message
    assert refused.value.message.endswith("Rehearse beside the database instead.")
