"""alembic_baseline: four steps on the replica's application; drift, libraries' tables, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from replica.application import HEAD, State
from replica.databases import AppDatabase
from tests.support.evidence import files
from tests.support.looking import findings
from tests.support.modules import run_module
from tests.support.stacks import Deployment, options, witness_of


@pytest.fixture
def healthy(make_database: Callable[..., AppDatabase]) -> AppDatabase:
    """A database at head, with an index that the models do not have."""
    database = make_database(State.HEALTHY)
    witness_of(database).execute("create index by_title on songs (title)")
    return database


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where baselines go; it is not there yet."""
    return tmp_path / "state" / "baselines"


def look(database: AppDatabase, directory: Path) -> dict[str, Any]:
    """Run `alembic_status` with the baselines; it must write nothing, there or in the database."""
    witness = witness_of(database)
    before = (witness.look(), files(directory) if directory.exists() else None)
    seen = run_module("alembic_status", options(database, compare_models=True, baselines=str(directory)))
    assert (witness.look(), files(directory) if directory.exists() else None) == before
    return seen


def record(seen: dict[str, Any], directory: Path, *, check: bool = False, **more: Any) -> dict[str, Any]:
    """Run the module."""
    return run_module("alembic_baseline", {"directory": str(directory), "status": seen, **more}, check=check, diff=True)


def test_four_steps_and_what_is_in_the_files(healthy: AppDatabase, directory: Path) -> None:
    seen = look(healthy, directory)
    assert seen["verdict"] == "AT_HEAD"
    foreseen = record(seen, directory, check=True)
    assert not directory.parent.exists()
    done = record(seen, directory, run_id="a-run")
    assert {**foreseen, "invocation": None} == {**done, "invocation": None}
    assert done["changed"] is True
    assert done["diff"] == {"before": "", "after": "there, and not in the models: index by_title on songs (title)\n"}

    there = json.loads(Path(done["baseline"]).read_text())
    assert (there["rows"], there["run_id"]) == ([HEAD], "a-run")
    assert [item["object"] for item in there["differences"]] == ["index by_title on songs"]
    revisions = json.loads((directory / "revisions.json").read_text())["revisions"]
    assert len(revisions) == len(list(healthy.application.glob("src/alembic/versions/*.py")))
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert (set(modes.values()), directory.stat().st_mode & 0o777) == ({0o600}, 0o700)
    assert sorted(modes) == sorted(Path(path).name for path in done["files"])

    left = files(directory)
    seen = look(healthy, directory)
    for check in (True, False):
        again = record(seen, directory, check=check, accept=True)
        assert (again["changed"], again["files"]) == (False, [])
    assert files(directory) == left


def test_drift_is_what_has_come_since_and_a_person_may_accept_it(healthy: AppDatabase, directory: Path) -> None:
    record(look(healthy, directory), directory)
    witness_of(healthy).execute(
        "alter table songs alter column title type text",
        "alter table users alter column display_name drop not null",
        "drop index by_title",
    )
    seen = look(healthy, directory)
    assert (seen["verdict"], seen["recoverable"]) == ("DRIFTED", False)
    assert "column songs.title (type is TEXT, the models say VARCHAR(300))" in seen["summary"]
    assert "column users.display_name (nullable is True, the models say False)" in seen["summary"]
    assert "index by_title on songs" in findings(seen)["gone_since_baseline"]

    left = files(directory)
    assert record(seen, directory)["changed"] is False
    assert files(directory) == left
    accepted = record(seen, directory, accept=True)
    assert accepted["changed"] is True
    assert len(accepted["recorded"]) == 2
    seen = look(healthy, directory)
    assert (seen["verdict"], seen["findings"]) == ("AT_HEAD", [])


def test_tables_that_celery_makes_in_between_are_no_drift(healthy: AppDatabase, directory: Path) -> None:
    """Nor are partitions."""
    witness = witness_of(healthy)
    witness.execute("create table by_month (at date) partition by range (at)", "create index on by_month (at)")
    record(look(healthy, directory), directory)
    witness.execute("create table in_may partition of by_month for values from ('2025-05-01') to ('2025-06-01')")
    worker = Celery("worker", backend=f"db+{healthy.url}")
    worker.backend.store_result("a-task", {"songs": 1}, "SUCCESS")
    assert witness.has("celery_taskmeta")
    plain = healthy.alembic("check")
    assert "celery_taskmeta" in plain.stderr + plain.stdout
    worker.backend.ResultSession().get_bind().dispose()

    assert look(healthy, directory)["verdict"] == "AT_HEAD"
    witness.execute("create table songs_before_the_incident as select * from songs")
    seen = look(healthy, directory)
    assert seen["verdict"] == "DRIFTED"
    assert seen["summary"].endswith("has changed: there, and not in the models: table songs_before_the_incident.")


def test_the_applications_own_filter_and_settings_count(healthy: AppDatabase, directory: Path, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "filtered")
    deployment.change_env(
        {
            "context.configure(connection=connection, target_metadata=target_metadata)": "context.configure("
            "connection=connection, target_metadata=target_metadata, compare_type=False, "
            "include_object=lambda _thing, name, *_rest: name != 'by_title')"
        }
    )
    witness_of(healthy).execute("alter table songs alter column title type text")
    place = {"compare_models": True, "baselines": str(directory)}
    filtered = run_module("alembic_status", options(healthy, deployment.directory, **place))
    assert (filtered["verdict"], filtered["models"]["differences"]) == ("AT_HEAD", [])
    everything = run_module("alembic_status", options(healthy, **place))
    assert len(everything["models"]["differences"]) == 2
    # What Alembic sees in the same catalog depends on the code: a baseline of one is none of the other.
    assert filtered["models"]["fingerprint"] != everything["models"]["fingerprint"]
    record(filtered, directory)
    assert "no_baseline" in findings(run_module("alembic_status", options(healthy, **place)))


def test_without_models_there_is_no_baseline_and_that_is_said(
    healthy: AppDatabase, directory: Path, tmp_path: Path
) -> None:
    deployment = Deployment(tmp_path / "without")
    deployment.change_env({"target_metadata = Base.metadata": "target_metadata = None"})
    place = {"compare_models": True, "baselines": str(directory)}
    seen = run_module("alembic_status", options(healthy, deployment.directory, **place))
    assert seen["verdict"] == "AT_HEAD"
    assert "env.py gives Alembic no models" in findings(seen)["no_models"]
    done = record(seen, directory, accept=True)
    assert (done["baseline"], [Path(path).name for path in done["files"]]) == ("", ["revisions.json"])
    assert done["reason"] == "env.py gives Alembic no models (target_metadata)"


def test_a_comparison_that_fails_does_not_hide_the_verdict(
    healthy: AppDatabase, directory: Path, tmp_path: Path
) -> None:
    deployment = Deployment(tmp_path / "failing")
    deployment.change_env(
        {
            "context.configure(connection=connection, target_metadata=target_metadata)": "context.configure("
            "connection=connection, target_metadata=target_metadata, include_object=lambda *_all: 1 / 0)"
        }
    )
    seen = run_module(
        "alembic_status", options(healthy, deployment.directory, compare_models=True, baselines=str(directory))
    )
    assert seen["verdict"] == "AT_HEAD"
    assert "Alembic could not compare them (ZeroDivisionError)" in findings(seen)["models_not_compared"]
    refused = record(seen, directory, accept=True)
    assert refused["failed"] is True
    assert "Nothing was recorded" in refused["msg"]
    assert not directory.exists()


def test_below_the_head_nothing_is_compared_or_recorded(broken: AppDatabase, directory: Path) -> None:
    seen = look(broken, directory)
    assert (seen["verdict"], seen["models"]["state"]) == ("BEHIND", "below_head")
    refused = record(seen, directory, accept=True)
    assert refused["failed"] is True
    assert "What was seen: verdict BEHIND" in refused["msg"]
    assert not directory.exists()


def test_what_was_not_asked_for_costs_nothing_and_cannot_be_recorded(healthy: AppDatabase, directory: Path) -> None:
    seen = run_module("alembic_status", options(healthy))
    assert (seen["verdict"], seen["models"]) == ("AT_HEAD", {})
    refused = record(seen, directory)
    assert refused["failed"] is True
    assert "compare_models: true" in refused["msg"]


def test_a_record_that_is_damaged_is_a_finding_and_no_failure(healthy: AppDatabase, directory: Path) -> None:
    done = record(look(healthy, directory), directory)
    Path(done["baseline"]).write_text("{")
    seen = look(healthy, directory)
    assert seen["verdict"] == "AT_HEAD"
    assert done["baseline"] in findings(seen)["models_not_compared"]


def test_a_secret_in_the_evidence_is_not_recorded_in_part(healthy: AppDatabase, directory: Path) -> None:
    arguments = options(healthy, compare_models=True, baselines=str(directory))
    arguments["application"]["environment"]["SECRET"] = "by_title"
    seen = run_module("alembic_status", arguments)
    assert (seen["verdict"], seen["models"]["reason"]) == ("AT_HEAD", "a secret is part of it")
    assert "by_title" not in json.dumps(seen)
    assert record(seen, directory, accept=True)["failed"] is True
    record(seen, directory, accept=False)
    assert list(directory.glob("baseline-*")) == []
