"""Baselines: what is drift, what a library's, what edited; and what a record changes and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.alembic_recovery import baseline, findings
from ansible.module_utils.alembic_recovery.baseline import Models, Recorded
from ansible.module_utils.alembic_recovery.errors import StackError

INDEX = {"side": "missing", "table": "songs", "object": "index i on songs", "detail": "n"}
TABLE = {"side": "extra", "table": "old_songs", "object": "table old_songs", "detail": ""}
CELERY = {"side": "extra", "table": "celery_taskmeta", "object": "table celery_taskmeta", "detail": ""}
CELERY_MISSING = {**CELERY, "side": "missing"}
CELERYS_INDEX = {**CELERY, "object": "index i on queue.celery_taskmeta", "table": "queue.celery_taskmeta"}
WIDER = {**INDEX, "detail": "n, id"}
AT = "2025-10-21T03:15:00+00:00"


def answer(*differences: dict[str, str], state: str = "compared", **sources: str) -> dict[str, Any]:
    """What the agent says."""
    there = state == "compared"
    one = {
        "state": state,
        "fingerprint": "f" if there else None,
        "differences": list(differences),
        "reason": None if there else "so",
    }
    return {"models": [one], "sources": sources}


CASES: list[
    tuple[str, list[dict[str, str]], list[dict[str, str]] | None, list[dict[str, str]], list[dict[str, str]]]
] = [
    ("nothing differs, nothing recorded", [], None, [], []),
    ("no baseline: no drift", [INDEX], None, [], []),
    ("all is recorded", [INDEX, TABLE], [INDEX, TABLE], [], []),
    ("one more", [INDEX, TABLE], [TABLE], [INDEX], []),
    ("an empty baseline is one", [INDEX], [], [INDEX], []),
    ("the same object, and another difference", [WIDER], [INDEX], [WIDER], []),
    ("nearer to the models", [], [INDEX], [], []),
    ("what the models do not have is gone", [], [TABLE], [], [TABLE]),
    ("a library's table", [CELERY], [], [], []),
    ("a library's index in a schema", [CELERYS_INDEX], [], [], []),
    ("models with that table", [CELERY_MISSING], [], [CELERY_MISSING], []),
]


@pytest.mark.parametrize(("seen", "kept", "drift", "gone"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_drift(
    seen: list[dict[str, str]], kept: list[dict[str, str]] | None, drift: list[Any], gone: list[Any]
) -> None:
    models = baseline.assess(answer(*seen), Recorded(kept, AT if kept is not None else None))
    assert (list(models.drift), list(models.gone)) == (drift, gone)


@pytest.mark.parametrize("state", ["no_models", "below_head", "failed"])
def test_what_was_not_compared_has_not_drifted(state: str) -> None:
    models = baseline.assess(answer(state=state), Recorded([INDEX, TABLE], AT))
    assert (models.state, models.reason, list(models.drift), list(models.gone)) == (state, "so", [], [])


def test_several_configurations_are_not_compared() -> None:
    models = baseline.assess({"models": [*answer()["models"], *answer()["models"]], "sources": {}}, Recorded())
    assert (models.state, models.reason) == ("failed", "env.py configures Alembic 2 times")


def test_edited_revisions_are_those_with_another_source() -> None:
    recorded = Recorded(sources={name: {"source": "1", "recorded_at": AT} for name in ("same", "other", "gone")})
    models = baseline.assess(answer(same="1", other="2", new="3"), recorded)
    assert models.edited == {"other": AT}


FINDINGS: list[tuple[str, Models | None, set[tuple[str, str]]]] = [
    ("nobody asked", None, set()),
    ("nothing differs", Models("compared", fingerprint="f"), set()),
    ("no models", Models("no_models", "env.py gives none"), {("no_models", "info")}),
    ("not at head", Models("below_head", "so"), set()),
    ("could not be compared", Models("failed", "so"), {("models_not_compared", "warning")}),
    ("no baseline", Models("compared", fingerprint="f", differences=[INDEX]), {("no_baseline", "info")}),
    ("all is recorded", Models("compared", fingerprint="f", differences=[INDEX], recorded_at=AT), set()),
    ("removed", Models("compared", gone=[TABLE], recorded_at=AT), {("gone_since_baseline", "warning")}),
    ("edited", Models("below_head", "so", edited={"a": AT}), {("edited_revision", "warning")}),
]


@pytest.mark.parametrize(("models", "expected"), [case[1:] for case in FINDINGS], ids=[case[0] for case in FINDINGS])
def test_findings(models: Models | None, expected: set[tuple[str, str]]) -> None:
    assert {(finding.name, finding.severity) for finding in findings.of_models(models)} == expected


def test_many_differences_are_counted_and_not_all_shown() -> None:
    many = [{**INDEX, "object": f"index i{number} on songs"} for number in range(100)]
    (finding,) = findings.of_models(Models("compared", fingerprint="f", differences=many))
    assert "differ (100)," in finding.text
    assert "; and 80 more." in finding.text


class TestRecord:
    FACTS: dict[str, Any] = {"run_id": "r"}

    def record(self, directory: Path, *seen: dict[str, str], accept: bool = False, **sources: str) -> baseline.Change:
        models = baseline.assess(answer(*seen, **sources), Recorded()).as_result()
        applied = sorted(name for name in sources if name.startswith("now_"))
        return baseline.record(str(directory), ["a"], models, accept=accept, applied=applied, facts=self.FACTS)

    def kept(self, directory: Path) -> Recorded:
        return baseline.read(str(directory), ["a"], "f")

    def test_deciding_writes_nothing_and_writing_is_private(self, tmp_path: Path) -> None:
        directory = tmp_path / "baselines"
        change = self.record(directory, INDEX, CELERY, a="1")
        assert not directory.exists()
        change.write()
        kept = self.kept(directory)
        assert (kept.differences, set(kept.sources)) == ([INDEX], {"a"})
        assert kept.recorded_at == kept.sources["a"]["recorded_at"]
        modes = {path.stat().st_mode & 0o777 for path in directory.iterdir()}
        assert (directory.stat().st_mode & 0o777, modes) == (0o700, {0o600})
        assert not self.record(directory, INDEX, a="1").contents

    def test_of_other_rows_or_other_code_nothing_is_recorded(self, tmp_path: Path) -> None:
        self.record(tmp_path / "b", INDEX).write()
        assert baseline.read(str(tmp_path / "b"), ["b"], "f").differences is None
        assert baseline.read(str(tmp_path / "b"), ["a"], "g").differences is None
        assert baseline.read(str(tmp_path / "b"), ["a"], None).differences is None

    def test_only_a_person_replaces_what_is_there(self, tmp_path: Path) -> None:
        directory = tmp_path / "baselines"
        self.record(directory, INDEX, a="1").write()
        again = self.record(directory, INDEX, TABLE, a="2")
        assert (again.contents, again.after) == ({}, baseline.in_words([INDEX]))
        accepted = self.record(directory, INDEX, TABLE, accept=True, a="2")
        assert (list(accepted.before), len(accepted.after)) == (baseline.in_words([INDEX]), 2)
        accepted.write()
        kept = self.kept(directory)
        assert (kept.differences, kept.sources["a"]["source"]) == ([INDEX, TABLE], "2")

    def test_what_has_just_been_applied_is_what_it_is_now(self, tmp_path: Path) -> None:
        directory = tmp_path / "baselines"
        self.record(directory, now_b="1", c="1").write()
        self.record(directory, now_b="2", c="2").write()
        assert {name: item["source"] for name, item in self.kept(directory).sources.items()} == {"now_b": "2", "c": "1"}

    def test_what_others_can_read_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        directory = tmp_path / "open"
        directory.mkdir(mode=0o755)
        with pytest.raises(StackError, match="is open to others"):
            self.record(directory, INDEX)

    @pytest.mark.parametrize(
        "text",
        ["", "[]", '{"format": 99}', '{"format": 1}', '{"format": 1, "recorded_at": "", "differences": [{}]}'],
        ids=["empty", "a list", "another format", "nothing in it", "a difference of nothing"],
    )
    def test_a_file_that_is_no_record_is_named(self, tmp_path: Path, text: str) -> None:
        directory = tmp_path / "baselines"
        self.record(directory, INDEX).write()
        (path,) = directory.iterdir()
        assert json.loads(path.read_text())["run_id"] == "r"
        path.write_text(text)
        with pytest.raises(StackError, match=path.name):
            self.kept(directory)
