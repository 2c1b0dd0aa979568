"""The applications: what is installed for each, what its stack has to say, and rows to be kept by a recovery."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.compat.environments import environment


@dataclass(frozen=True)
class Application:
    """One chain of revisions of one application.

    Attributes:
        name: Its name in `own_command.py`.
        requirements: What pip installs, pinned, into an environment of its own.
        driver: The driver for its addresses.
        options: Keys of the option `application`, with `{packages}` for where its packages are, `{url}` for the
            database's address.
        version_table: Its version table.
        older: Three older revisions at which it is read; the rows are put in at the last of them.
        rows: Statements that put rows into the tables of that revision.
    """

    name: str
    requirements: tuple[str, ...]
    driver: str
    options: dict[str, Any]
    older: tuple[str, ...]
    rows: tuple[str, ...]
    version_table: str = "alembic_version"

    @property
    def environment(self) -> Path:
        """Where it is installed; applications with equal requirements share it."""
        return environment(self.requirements[0].replace("==", "-"), self.requirements)

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.environment / "bin" / "python")

    @property
    def packages(self) -> Path:
        """Where its packages are."""
        return next(self.environment.glob("lib/python*/site-packages"))

    def described(self, url: str) -> dict[str, Any]:
        """Return what the stack says of it."""
        return {key: _filled(value, str(self.packages), url) for key, value in self.options.items()}


def _filled(value: Any, packages: str, url: str) -> Any:
    if isinstance(value, dict):
        return {key: _filled(inner, packages, url) for key, inner in value.items()}
    return value.replace("{packages}", packages).replace("{url}", url) if isinstance(value, str) else value


_PSYCOPG = "psycopg[binary]==3.3.9"
_RELEASES = ("yoga", "bobcat", "2024.1", "2025.2", "2026.1")
_KEYSTONE_VERSIONS = "{packages}/keystone/common/sql/migrations/versions"
_MLFLOW = ("mlflow==3.17.2", _PSYCOPG, "Flask-WTF==1.3.0")

OPTUNA = Application(
    name="optuna",
    requirements=("optuna==5.0.0", _PSYCOPG),
    driver="psycopg",
    options={
        "alembic_config": "{packages}/optuna/storages/_rdb/alembic.ini",
        "script_location": "{packages}/optuna/storages/_rdb/alembic",
        "alembic_options": {"sqlalchemy.url": "{url}"},
    },
    older=("v3.0.0.a", "v1.3.0.a", "v2.6.0.a"),
    rows=(
        "insert into studies (study_id, study_name) values (1, 'kept'), (2, 'also kept')",
        "insert into study_directions (study_id, direction, objective) values (1, 'MINIMIZE', 0)",
        "insert into trials (trial_id, number, study_id, state) values (1, 0, 1, 'COMPLETE'), (2, 1, 1, 'RUNNING')",
        "insert into trial_values (trial_id, objective, value) values (1, 0, 0.25)",
        "insert into trial_intermediate_values (trial_id, step, intermediate_value) values (1, 0, 0.5)",
    ),
)
MLFLOW = Application(
    name="mlflow",
    requirements=_MLFLOW,
    driver="psycopg",
    options={
        "script_location": "{packages}/mlflow/store/db_migrations",
        "alembic_options": {"sqlalchemy.url": "{url}"},
    },
    older=("89d4b8295536", "97727af70f4d", "cfd24bdc0731"),
    rows=(
        "insert into experiments (experiment_id, name, lifecycle_stage) values (7, 'kept', 'active')",
        "insert into runs (run_uuid, name, experiment_id, status) values ('r1', 'first', 7, 'FINISHED')",
        "insert into params (key, value, run_uuid) values ('rate', '0.1', 'r1')",
        "insert into metrics (key, value, \"timestamp\", run_uuid) values ('loss', 0.5, 1, 'r1')",
    ),
)
MLFLOW_AUTH = Application(
    name="mlflow-auth",
    requirements=_MLFLOW,
    driver="psycopg",
    options={
        "alembic_config": "{packages}/mlflow/server/auth/db/migrations/alembic.ini",
        "script_location": "{packages}/mlflow/server/auth/db/migrations",
        "alembic_options": {"sqlalchemy.url": "{url}"},
    },
    older=("8606fa83a998", "a1b2c3d4e5f6", "0965eb92f5f0"),
    rows=(
        "insert into users (id, username, password_hash, is_admin) values (1, 'ada', 'x', true)",
        "insert into users (id, username, password_hash, is_admin) values (2, 'bob', 'y', false)",
        "insert into experiment_permissions (experiment_id, user_id, permission) values ('7', 2, 'READ')",
    ),
    version_table="alembic_version_auth",
)
KEYSTONE = Application(
    name="keystone",
    requirements=("keystone==30.0.0", _PSYCOPG),
    driver="psycopg",
    options={
        "alembic_config": "{packages}/keystone/common/sql/alembic.ini",
        "alembic_options": {
            "sqlalchemy.url": "{url}",
            "version_locations": os.pathsep.join(
                [
                    _KEYSTONE_VERSIONS,
                    *(
                        f"{_KEYSTONE_VERSIONS}/{release}/{branch}"
                        for release in _RELEASES
                        for branch in ("expand", "contract")
                    ),
                ]
            ),
        },
        "heads": ["expand", "contract"],
    },
    older=("29e87d24a316", "11c3b243b4cb", "27e647c0fad4"),
    rows=(
        "insert into region (id, description) values ('north', 'kept')",
        "insert into service (id, type, enabled) values ('s1', 'identity', true)",
    ),
)

#: The first one is installed and tried in `make test`, too.
ALL = (OPTUNA, MLFLOW, MLFLOW_AUTH, KEYSTONE)
