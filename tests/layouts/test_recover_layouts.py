"""The whole of recover.yml on applications that are laid out in a way of their own, without a service."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.layout_app import LayoutApp


@pytest.mark.slow
def test_no_ini_file_x_arguments_two_branches_and_a_version_table_elsewhere(app: LayoutApp, tmp_path: Path) -> None:
    app.schemas(["north", "meta"])
    app.env(
        before="""
        URL = context.config.get_main_option("sqlalchemy.url")
        customer = context.get_x_argument(as_dictionary=True)["customer"]
        URL += f"&options=-csearch_path%3D{customer}"
        """,
        options="version_table='history', version_table_schema='meta'",
    )
    app.ini()
    app.chain("one", "two", "three")
    app.revision("beside", "one", labels=("side",))
    app.write("alembic.ini", app.directory.joinpath("alembic.ini").read_text() + f"sqlalchemy.url = {_doubled(app)}\n")
    app.call("-x", "customer=north", "upgrade", "one")
    (app.directory / "alembic.ini").unlink()
    app.options = {
        "script_location": "migrations",
        "alembic_options": {"sqlalchemy.url": app.url()},
        "x_arguments": ["customer=north"],
        "heads": ["three", "side"],
    }
    done = app.play(tmp_path)
    assert done.code == 0, done.text
    assert app.rows("meta.history") == ["beside", "three"]
    assert app.tables("north") == {"t_one", "t_two", "t_three", "t_beside"}
    # The rehearsal has undone each of them alone, although no revision is below both branches but those that stay.
    said = " ".join(done.text.split())
    assert all(f"Undoing {revision} is lossless" in said for revision in ("beside", "two", "three")), done.text
    assert "AT_HEAD" in app.play(tmp_path, "playbooks/status.yml").text


def _doubled(app: LayoutApp) -> str:
    return app.url().replace("%", "%%")
