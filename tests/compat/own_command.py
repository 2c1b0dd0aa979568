"""What each application's own code does about its migrations: run in that application's own environment.

    python own_command.py APPLICATION read               rows, heads and missing revisions, as JSON
    python own_command.py APPLICATION upgrade REVISION   with what the application's first start makes before it

The address of the database is in DATABASE_URL. Nothing in here uses the product's code: it is the independent reading.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path

URL = os.environ["DATABASE_URL"]
# `python FILE` puts this directory first on the path; a module beside this file is none of the application's.
sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]

import alembic.config  # noqa: E402
import sqlalchemy  # noqa: E402
from alembic import command  # noqa: E402
from alembic.script import ScriptDirectory  # noqa: E402


def place(package: str) -> Path:
    """Where a package is, without an import of it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent


def optuna_config() -> alembic.config.Config:
    """As optuna.storages._rdb.storage makes it."""
    directory = place("optuna.storages._rdb")
    config = alembic.config.Config(str(directory / "alembic.ini"))
    config.set_main_option("script_location", str(directory / "alembic"))
    config.set_main_option("sqlalchemy.url", URL.replace("%", "%%"))
    return config


def mlflow_config() -> alembic.config.Config:
    """Mlflow's own function."""
    from mlflow.store.db.utils import _get_alembic_config

    return _get_alembic_config(URL)


def mlflow_auth_config() -> alembic.config.Config:
    """Mlflow's own function for its users and permissions."""
    from mlflow.server.auth.db.utils import _get_alembic_config

    return _get_alembic_config(URL)


def keystone_config() -> alembic.config.Config:
    """Keystone's own function."""
    import keystone.conf
    from keystone.common.sql import core, upgrades

    keystone.conf.configure()
    core.initialize()
    keystone.conf.CONF([], default_config_files=[])
    keystone.conf.CONF.set_override("connection", URL, group="database")
    return upgrades.get_alembic_config()


def mlflow_first_start() -> None:
    """Mlflow's chain cannot be built from nothing: its first start makes the tables that it begins with (trap 17)."""
    from mlflow.store.tracking.dbmodels.initial_models import Base

    engine = sqlalchemy.create_engine(URL)
    if not sqlalchemy.inspect(engine).has_table("alembic_version"):
        Base.metadata.create_all(engine)


CONFIGS = {
    "optuna": optuna_config,
    "mlflow": mlflow_config,
    "mlflow-auth": mlflow_auth_config,
    "keystone": keystone_config,
}
FIRST_STARTS = {"mlflow": mlflow_first_start}
VERSION_TABLES = {"mlflow-auth": "alembic_version_auth"}


def read(name: str) -> dict[str, object]:
    """Return what the version table and the scripts say, by Alembic's own means."""
    script = ScriptDirectory.from_config(CONFIGS[name]())
    engine = sqlalchemy.create_engine(URL)
    table = VERSION_TABLES.get(name, "alembic_version")
    rows: list[str] = []
    if sqlalchemy.inspect(engine).has_table(table):
        with engine.connect() as connection:
            rows = sorted(row[0] for row in connection.exec_driver_sql(f"select version_num from {table}"))
    packages = (name.partition("-")[0], "alembic", "sqlalchemy")
    return {
        "rows": rows,
        "heads": sorted(script.get_heads()),
        "missing": [step.revision.revision for step in script._upgrade_revs("heads", tuple(rows))],
        "all": [revision.revision for revision in reversed(list(script.walk_revisions()))],
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def main() -> None:
    """Do what the command line says; the answer is the last line."""
    name, verb = sys.argv[1:3]
    if verb == "upgrade":
        FIRST_STARTS.get(name, lambda: None)()
        command.upgrade(CONFIGS[name](), sys.argv[3])
    answer = read(name)
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
