"""Applications of any layout, never changed for us by their authors: each is read, and brought to head, with proof."""

from __future__ import annotations

import getpass
import os
import pwd
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.layout_app import LayoutApp

CHAIN = ("one", "two", "three")

ASYNC_ENV = """
import asyncio, os
from alembic import context
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import create_async_engine

URL = os.environ["DATABASE_URL"]
<before>


def migrate(connection):
    context.configure(connection=connection<options>)
    with context.begin_transaction():
        context.run_migrations()


async def online():
    engine = create_async_engine(URL, poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(online())
"""


def recovered(
    app: LayoutApp,
    missing: tuple[str, ...] = ("two", "three"),
    head: tuple[str, ...] = ("three",),
    table: str = "alembic_version",
    schema: str = "public",
) -> None:
    """Behind; brought to head; proved by the superuser; and the second time there is nothing to do."""
    seen = app.status()
    assert (seen["verdict"], seen["refusals"]) == ("BEHIND", []), seen
    assert [step["revision"] for step in seen["missing"]] == list(missing)
    before = app.witness.look()
    foreseen = app.migrate(check=True)
    assert (foreseen["changed"], foreseen["after"]) == (True, sorted(head)), foreseen
    assert app.witness.look() == before

    done = app.migrate()
    assert not done.get("failed"), done["msg"]
    assert done["changed"] is True
    assert [step["revision"] for step in done["applied"]] == list(missing)
    assert done["after"] == sorted(head)
    assert app.rows(table) == sorted(head)
    assert {f"t_{name}" for name in missing} <= app.tables(schema)

    again = app.migrate()
    assert (again["changed"], again["applied"]) == (False, [])
    assert app.status()["verdict"] == "AT_HEAD"


class TestVersionTables:
    def test_a_version_table_of_another_name(self, app: LayoutApp) -> None:
        app.ini()
        app.env(options="version_table='schema history'")
        app.chain(*CHAIN)
        app.call("upgrade", "one")
        recovered(app, table='"schema history"')

    def test_a_version_table_in_another_schema(self, app: LayoutApp) -> None:
        app.schemas(["meta"])
        app.ini()
        app.env(options="version_table='version.s', version_table_schema='meta'")
        app.chain(*CHAIN)
        app.call("upgrade", "one")
        recovered(app, table='meta."version.s"')

    def test_two_chains_in_one_database_are_two_stacks(self, app: LayoutApp) -> None:
        """Two sections of the ini file, each with a version table; what is done to one leaves the other as it is."""
        app.ini({"alembic": "migrations", "accounts": "accounts"})
        app.env()
        app.env(options="version_table='accounts_version'", place="accounts")
        app.chain(*CHAIN)
        app.chain("first", "second", place="accounts/versions")
        app.call("upgrade", "one")
        app.call("-n", "accounts", "upgrade", "first")
        recovered(app)
        assert app.rows("accounts_version") == ["first"]
        app.options["alembic_section"] = "accounts"
        recovered(app, missing=("second",), head=("second",), table="accounts_version")
        assert app.rows() == ["three"]

    def test_a_schema_for_each_customer_with_a_version_table_of_its_own(self, app: LayoutApp) -> None:
        """One env.py runs its migrations several times; the customers are not all at the same revision."""
        app.schemas(["north", "south"])
        app.ini()
        app.write(
            "migrations/env.py",
            """
            import os
            from alembic import context
            from sqlalchemy import create_engine, pool, text

            engine = create_engine(os.environ["DATABASE_URL"], poolclass=pool.NullPool)
            for customer in os.environ.get("ONLY", "north,south").split(","):
                with engine.connect() as connection:
                    connection.execute(text(f"set search_path to {customer}"))
                    connection.commit()
                    context.configure(connection=connection, version_table_schema=customer)
                    with context.begin_transaction():
                        context.run_migrations()
            """,
        )
        app.chain(*CHAIN)
        app.call("upgrade", "one")
        app.environment = {"ONLY": "south"}
        app.call("upgrade", "two")
        app.environment = {}

        seen = app.status()
        assert (seen["verdict"], seen["refusals"], seen["current"]) == ("BEHIND", [], ["one", "two"])
        assert [step["revision"] for step in seen["missing"]] == ["two", "three"]
        assert "2 version tables (north.alembic_version, south.alembic_version)" in seen["summary"]
        assert "north.alembic_version: The database is at one" in seen["summary"]
        refused = app.migrate(direction="down", target="one")
        assert "the 2 version tables of the database are at different revisions" in refused["msg"]
        done = app.migrate()
        assert not done.get("failed"), done["msg"]
        assert [step["revision"] for step in done["applied"]] == ["two", "three"]
        for customer in ("north", "south"):
            assert app.rows(f"{customer}.alembic_version") == ["three"]
            assert app.tables(customer) == {"t_one", "t_two", "t_three"}
        assert app.migrate()["changed"] is False
        assert app.status()["verdict"] == "AT_HEAD"

        undone = app.migrate(direction="down", target="two")
        assert [step["revision"] for step in undone["undone"]] == ["three"]
        for customer in ("north", "south"):
            assert app.rows(f"{customer}.alembic_version") == ["two"]

    def test_one_customer_without_a_version_table_stops_all(self, app: LayoutApp) -> None:
        app.schemas(["north", "south"])
        app.ini()
        app.write(
            "migrations/env.py",
            """
            import os
            from alembic import context
            from sqlalchemy import create_engine, pool

            engine = create_engine(os.environ["DATABASE_URL"], poolclass=pool.NullPool)
            for customer in os.environ.get("ONLY", "north,south").split(","):
                with engine.connect() as connection:
                    context.configure(connection=connection, version_table_schema=customer)
                    with context.begin_transaction():
                        context.run_migrations()
            """,
        )
        app.chain(*CHAIN)
        app.environment = {"ONLY": "south"}
        app.call("upgrade", "one")
        app.environment = {}
        seen = app.status()
        assert (seen["verdict"], seen["recoverable"]) == ("UNVERSIONED", False)
        assert "north.alembic_version: The database has" in seen["summary"]
        assert "Nothing was migrated" in app.migrate()["msg"]

    def test_several_databases_in_one_run_are_refused(self, make_app: Callable[[], LayoutApp]) -> None:
        app, other = make_app(), make_app()
        app.ini()
        app.environment = {"OTHER_URL": other.url()}
        app.write(
            "migrations/env.py",
            """
            import os
            from alembic import context
            from sqlalchemy import create_engine, pool

            for url in (os.environ["DATABASE_URL"], os.environ["OTHER_URL"]):
                with create_engine(url, poolclass=pool.NullPool).connect() as connection:
                    context.configure(connection=connection)
                    with context.begin_transaction():
                        context.run_migrations()
            """,
        )
        app.chain(*CHAIN)
        app.call("upgrade", "one")
        seen = app.status()
        sentence = (
            f"The application's env.py migrates 2 databases at a time ({app.database}, {other.database}), and a stack "
            "is one database"
        )
        assert sentence in seen["refusals"][0]
        assert [item["name"] for item in seen["findings"]] == ["several_databases"]
        assert sentence in app.migrate()["msg"]
        assert (app.rows(), other.rows()) == (["one"], ["one"])


class TestBranches:
    @pytest.fixture
    def branched(self, app: LayoutApp) -> LayoutApp:
        """Two branches with labels, both of which are meant to be."""
        app.ini()
        app.env()
        app.revision("one", None)
        app.revision("core1", "one", labels=("core",))
        app.revision("core2", "core1")
        app.revision("shop1", "one", labels=("shop",))
        app.call("upgrade", "core1")
        return app

    @pytest.mark.parametrize(
        "heads", [["core2", "shop1"], ["core", "shop@head"], ["heads"]], ids=["ids", "labels", "all"]
    )
    def test_heads_that_are_declared_are_all_brought_about(self, branched: LayoutApp, heads: list[str]) -> None:
        branched.options["heads"] = heads
        recovered(branched, missing=("core2", "shop1"), head=("core2", "shop1"))

    def test_heads_that_nobody_declared_are_refused(self, branched: LayoutApp) -> None:
        seen = branched.status()
        assert (seen["verdict"], seen["recoverable"]) == ("MULTIPLE_HEADS", False)
        assert "2 heads that nobody declared: core2, shop1" in seen["summary"]
        assert "name all of them in app.heads" in seen["next_step"]

    def test_a_head_that_is_not_among_the_declared_is_refused(self, branched: LayoutApp) -> None:
        branched.options["heads"] = ["core"]
        seen = branched.status()
        assert (seen["verdict"], seen["recoverable"]) == ("MULTIPLE_HEADS", False)
        assert seen["summary"] == "The code has 2 heads and nobody declared: shop1."

    def test_a_declared_head_that_the_code_does_not_have_is_refused(self, branched: LayoutApp) -> None:
        branched.options["heads"] = ["core", "shop", "billing"]
        seen = branched.status()
        assert (seen["verdict"], len(seen["refusals"])) == ("BEHIND", 1)
        assert "app.heads declares billing; the code's heads are core2, shop1" in seen["refusals"][0]
        assert branched.migrate()["failed"] is True
        assert branched.rows() == ["core1"]

    def test_a_branch_that_depends_on_another(self, app: LayoutApp) -> None:
        app.ini()
        app.env()
        app.revision("one", None)
        app.revision("two", "one")
        app.revision("apart", None, labels=("side",))
        app.revision("joint", "apart", depends_on="two")
        app.call("upgrade", "one")
        recovered(app, missing=("apart", "two", "joint"), head=("joint",))


class TestConfiguration:
    def test_version_locations_that_env_py_sets(self, app: LayoutApp) -> None:
        app.ini()
        app.env(
            before="""
            script = context.script
            script.version_locations = [os.path.join(os.getcwd(), "plugins", "versions")]
            script.__dict__.pop("_version_locations", None)
            """
        )
        app.chain(*CHAIN, place="plugins/versions")
        app.options = {}
        app.call("current")  # env.py runs before the revisions are read, as for `upgrade` of a command of its own
        app.witness.execute("create table alembic_version (version_num varchar(32) primary key)")
        app.witness.execute("alter table alembic_version owner to owner", "create table t_one (id int)")
        app.witness.execute("insert into alembic_version values ('one')")
        recovered(app)

    @pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
    def test_an_async_env_py(self, app: LayoutApp, driver: str) -> None:
        app.ini()
        app.env(text=ASYNC_ENV)
        app.chain(*CHAIN)
        app.environment = {"DATABASE_URL": app.url(driver)}
        app.call("upgrade", "one")
        recovered(app)

    def test_x_arguments(self, app: LayoutApp) -> None:
        app.schemas(["north"])
        app.ini()
        app.env(options="version_table_schema=context.get_x_argument(as_dictionary=True)['customer']")
        app.chain(*CHAIN)
        app.call("-x", "customer=north", "upgrade", "one")
        app.options["x_arguments"] = ["customer=north"]
        recovered(app, table="north.alembic_version")

    def test_pyproject_toml_instead_of_an_ini_file(self, app: LayoutApp) -> None:
        app.write("pyproject.toml", '[project]\nname = "shop"\n\n[tool.alembic]\nscript_location = "%(here)s/db"\n')
        app.env(place="db")
        app.chain(*CHAIN, place="db/versions")
        app.call("upgrade", "one")
        recovered(app)
        app.options["alembic_config"] = "pyproject.toml"
        assert app.status()["verdict"] == "AT_HEAD"

    def test_no_configuration_file_at_all(self, app: LayoutApp) -> None:
        """The application makes the configuration itself, the address of its database in it."""
        app.write(
            "manage.py",
            """
            import os, sys
            from alembic import command
            from alembic.config import Config

            config = Config()
            config.set_main_option("script_location", "shop:db")
            config.set_main_option("sqlalchemy.url", os.environ["DATABASE_URL"].replace("%", "%%"))
            command.upgrade(config, sys.argv[2])
            """,
        )
        app.write("shop/__init__.py", "")
        app.env(before="URL = context.config.get_main_option('sqlalchemy.url')", place="shop/db")
        app.chain(*CHAIN, place="shop/db/versions")
        app.command = (sys.executable, "manage.py")
        app.call("upgrade", "one")
        app.options = {
            "script_location": "shop:db",
            "alembic_options": {"sqlalchemy.url": app.url()},
            "environment": {"DATABASE_URL": "postgresql://nobody@nowhere/nothing", "PYTHONPATH": str(app.directory)},
        }
        recovered(app)

    def test_no_configuration_and_none_described_is_named(self, app: LayoutApp) -> None:
        app.write("pyproject.toml", '[project]\nname = "shop"\n')
        seen = app.status()
        assert seen["verdict"] == "UNREADABLE"
        assert f"There is no alembic.ini in {app.directory}" in seen["summary"]
        assert "Correct app.workdir or app.alembic_config" in seen["summary"]

    def test_a_search_path_and_several_schemas(self, app: LayoutApp) -> None:
        """The address of the database sets a search path; revisions work in two schemas; our role has none set."""
        app.schemas(["core", "stats"])
        app.ini()
        app.env()
        app.revision("one", None)
        app.revision("two", "one", "op.create_table('t_stats', sa.Column('id', sa.Integer), schema='stats')")
        app.revision("three", "two")
        app.environment = {"DATABASE_URL": app.url(options="-csearch_path=core,stats")}
        app.call("upgrade", "one")
        assert app.rows("core.alembic_version") == ["one"]
        seen = app.status()
        assert (seen["verdict"], seen["version_table"]) == ("BEHIND", "core.alembic_version")
        done = app.migrate()
        assert not done.get("failed"), done["msg"]
        assert app.rows("core.alembic_version") == ["three"]
        assert (app.tables("core"), app.tables("stats")) == ({"t_one", "t_three"}, {"t_stats"})
        assert (app.migrate()["changed"], app.status()["verdict"]) == (False, "AT_HEAD")


class TestOwnCommands:
    def test_flask_migrate(self, app: LayoutApp) -> None:
        """Its env.py needs `current_app`, its ini file has no script_location; both are what `flask db` gives it."""
        app.write(
            "shop.py",
            """
            import os
            from flask import Flask
            from flask_migrate import Migrate
            from flask_sqlalchemy import SQLAlchemy

            db = SQLAlchemy()


            def create_app():
                app = Flask(__name__)
                app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
                db.init_app(app)
                Migrate(app, db)
                return app
            """,
        )
        app.command = (sys.executable, "-m", "flask", "--app", "shop", "db")
        app.call("init")
        app.chain(*CHAIN)
        app.call("upgrade", "one")
        app.options = {
            "alembic_config": "migrations/alembic.ini",
            "script_location": "migrations",
            "prepare": "shop:create_app",
        }
        recovered(app)

    def test_settings_that_the_command_of_the_application_makes(self, app: LayoutApp) -> None:
        """As `airflow db` or `keystone-manage`: env.py takes an engine that the command has configured before."""
        app.write(
            "shop/settings.py",
            """
            import os
            import sqlalchemy

            engine = None


            def configure():
                global engine
                engine = sqlalchemy.create_engine(os.environ["DATABASE_URL"])
            """,
        )
        app.write("shop/__init__.py", "")
        app.write(
            "shop/db/env.py",
            """
            from alembic import context
            from shop import settings

            with settings.engine.connect() as connection:
                context.configure(connection=connection)
                with context.begin_transaction():
                    context.run_migrations()
            """,
        )
        app.write(
            "manage.py",
            """
            import sys
            from alembic import command
            from alembic.config import Config
            from shop import settings

            settings.configure()
            config = Config()
            config.set_main_option("script_location", "shop/db")
            command.upgrade(config, sys.argv[2])
            """,
        )
        app.chain(*CHAIN, place="shop/db/versions")
        app.command = (sys.executable, "manage.py")
        app.call("upgrade", "one")
        app.options = {"script_location": "shop/db", "prepare": "shop.settings:configure"}
        recovered(app)

    @pytest.mark.parametrize("name", ["shop:create_app", "shop.none:app", "shop"])
    def test_something_to_prepare_that_is_not_there_is_named(self, app: LayoutApp, name: str) -> None:
        app.ini()
        app.env()
        app.chain(*CHAIN)
        app.write("shop/__init__.py", "")
        app.options["prepare"] = name
        seen = app.status()
        assert seen["verdict"] == "UNREADABLE"
        assert f"app.prepare is {name}, which cannot be had in {app.directory}" in seen["summary"]

    def test_noise_on_import_and_what_the_process_must_be_given(self, app: LayoutApp) -> None:
        """Prints, logs and C code go to standard output; a variable and a file of the working directory are needed."""
        app.ini()
        app.write("settings.txt", "secret")
        app.env(
            before="""
            import atexit, ctypes, logging, sys

            print('{"event": "status", "databases": []}')
            sys.__stdout__.write('{"event": "end"}\\n')
            os.write(1, b'{"event": "error", "kind": "none", "message": "none"}\\n')
            ctypes.CDLL(None).puts(b"from C")
            logging.basicConfig(stream=sys.stdout, level=logging.DEBUG, force=True)
            atexit.register(print, "good bye")
            assert open("settings.txt").read() == os.environ["SETTING"]
            """
        )
        app.chain(*CHAIN)
        app.environment = {"SETTING": "secret"}
        app.call("upgrade", "one")
        recovered(app)

    def test_a_system_user(self, app: LayoutApp) -> None:
        """Its processes are those of the user that the application runs as, in that user's home."""
        user = _another_user()
        app.ini()
        app.env(before=f"assert (os.getuid(), os.environ['USER']) == ({_uid(user)}, {user!r})")
        app.chain(*CHAIN)
        # pytest's own directories are for nobody else, and there is one more of them for each of several workers.
        for path in [app.directory, *app.directory.parents]:
            if path == Path(tempfile.gettempdir()):
                break
            path.chmod(0o755)
        app.witness.execute("create table t_one (id int)", "create table alembic_version (version_num varchar(32))")
        app.witness.execute("insert into alembic_version values ('one')", "alter table alembic_version owner to owner")
        app.options["system_user"] = user
        if user != getpass.getuser():
            packages = next(path for path in sys.path if path.endswith("site-packages"))
            app.environment = {"PYTHONPATH": packages}
            app.options["python"] = _PUBLIC_PYTHON
        recovered(app)

    def test_a_system_user_that_is_not_there_is_named(self, app: LayoutApp) -> None:
        app.options["system_user"] = "no-such-user"
        assert "This host has no user no-such-user. Correct app.system_user" in app.migrate()["msg"]


_PUBLIC_PYTHON = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"


def _another_user() -> str:
    """Return `nobody` where its processes can be started, and can run this Python's packages; else who we are."""
    places = [path for path in Path(__file__).parents if path != path.parent]
    reachable = all(path.stat().st_mode & 0o001 for path in places)
    return "nobody" if os.geteuid() == 0 and reachable and Path(_PUBLIC_PYTHON).exists() else getpass.getuser()


def _uid(user: str) -> int:
    return pwd.getpwnam(user).pw_uid
