"""What the models and the catalog had not in common when somebody found that right, and what has come since: drift.

A healthy database differs from its models (`alembic check` says so for many an application), so differences alone say
nothing. Those that are there once a database is proved to be at head are its baseline; only others are drift. A
baseline is of one set of version rows and of the code: of its models, its `env.py`, and the versions of Alembic and
SQLAlchemy, for with others of these there are other differences.

What applied revisions did, as hashes of their sources, is kept beside the baselines.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import typing as t

from ansible.module_utils.alembic_recovery import files
from ansible.module_utils.alembic_recovery.errors import StackError

_FORMAT = 1
_SOURCES = "revisions.json"
_KEYS = ("side", "table", "object", "detail")

#: Tables that libraries make in an application's database, which no models and no revisions of the application know.
#: Celery makes its two when a worker stores its first result, which may be long after a baseline was recorded.
LIBRARY_TABLES = frozenset(
    {"celery_taskmeta", "celery_tasksetmeta", "kombu_message", "kombu_queue", "apscheduler_jobs", "spatial_ref_sys"}
)

Difference = t.Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Models:
    """The comparison of models and catalog, and of applied revisions with what they were.

    :param state: compared, no_models, below_head or failed, with the `reason` for the last three.
    :param differences: all, as the agent describes them, without those of libraries' tables.
    :param drift: those that are not in the baseline; none where there is no baseline.
    :param gone: what the database had more than the models when that was recorded, and has no longer.
    :param recorded_at: when the baseline was recorded; none without one.
    :param edited: revisions whose source is another than the recorded one, with when that was recorded.
    """

    state: str
    reason: str | None = None
    fingerprint: str | None = None
    differences: t.Sequence[Difference] = ()
    drift: t.Sequence[Difference] = ()
    gone: t.Sequence[Difference] = ()
    recorded_at: str | None = None
    sources: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    edited: t.Mapping[str, str] = dataclasses.field(default_factory=dict)

    def as_result(self) -> dict[str, t.Any]:
        """The JSON form for a task's result, as :func:`record` takes it."""
        return {**dataclasses.asdict(self), "edited": dict(self.edited), "sources": dict(self.sources)}


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A baseline that has been read, and the hashes of revisions by their ids (`source`, `recorded_at`)."""

    differences: t.Sequence[Difference] | None = None
    recorded_at: str | None = None
    sources: t.Mapping[str, t.Mapping[str, str]] = dataclasses.field(default_factory=dict)


def assess(answer: t.Mapping[str, t.Any], recorded: Recorded) -> Models:
    """What the agent has seen, against what was recorded: pure.

    :param answer: the agent's `status`: `models` (one for each time `env.py` has configured Alembic), `sources`.
    """
    sources = answer.get("sources") or {}
    edited = {
        name: str(kept["recorded_at"])
        for name, kept in recorded.sources.items()
        if name in sources and sources[name] != kept["source"]
    }
    seen = answer.get("models") or []
    if len(seen) != 1:
        reason = f"env.py configures Alembic {len(seen)} times"
        return Models("failed", reason, sources=sources, edited=edited)
    one = seen[0]
    found = [item for item in one["differences"] if not _of_a_library(item)]
    kept = recorded.differences
    compared = one["state"] == "compared"
    return Models(
        one["state"],
        one["reason"],
        fingerprint=one["fingerprint"],
        differences=found,
        drift=[item for item in found if item not in kept] if kept is not None else [],
        gone=[item for item in kept or () if item["side"] == "extra" and item not in found] if compared else [],
        recorded_at=recorded.recorded_at,
        sources=sources,
        edited=edited,
    )


def in_words(differences: t.Iterable[Difference]) -> list[str]:
    """Differences as people read them, by what the database has or lacks."""
    words = {"missing": "not there: ", "extra": "there, and not in the models: ", "other": "differs: "}
    return [
        words[item["side"]] + item["object"] + (f" ({item['detail']})" if item["detail"] else "")
        for item in differences
    ]


def _of_a_library(item: Difference) -> bool:
    return item["side"] == "extra" and item["table"].rpartition(".")[2] in LIBRARY_TABLES


def read(directory: str, rows: t.Sequence[str], fingerprint: str | None) -> Recorded:
    """What is recorded for these version rows and this code; nothing where nothing is.

    :raises StackError: something is there that cannot be read.
    """
    path = os.path.join(directory, _SOURCES)
    try:
        sources = {
            str(name): {"source": str(item["source"]), "recorded_at": str(item["recorded_at"])}
            for name, item in (_read(path) or {"revisions": {}})["revisions"].items()
        }
        path = _path(directory, rows, fingerprint)
        kept = _read(path) if fingerprint else None
        if kept is None:
            return Recorded(sources=sources)
        differences = [{key: str(item[key]) for key in _KEYS} for item in kept["differences"]]
        return Recorded(differences, str(kept["recorded_at"]), sources)
    except (KeyError, TypeError, AttributeError) as error:  # somebody has edited it
        raise StackError(
            f"{path} is not as it was written ({type(error).__name__}: {error}). Move it away, and record a baseline "
            "anew."
        ) from error


@dataclasses.dataclass(frozen=True)
class Change:
    """What a record would change: files with their new content, and the baseline before and after in words."""

    contents: t.Mapping[str, t.Mapping[str, t.Any]]
    before: t.Sequence[str]
    after: t.Sequence[str]
    path: str

    def write(self) -> None:
        """Do it.

        :raises StackError: it cannot be written.
        """
        for path, content in self.contents.items():
            files.private_directory(os.path.dirname(path))
            files.replace_private(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def record(
    directory: str,
    rows: t.Sequence[str],
    models: t.Mapping[str, t.Any],
    *,
    accept: bool,
    applied: t.Collection[str],
    facts: t.Mapping[str, t.Any],
) -> Change:
    """What there is to record; nothing is written yet.

    :param models: what :meth:`Models.as_result` gave.
    :param accept: a person has said so: a baseline or a hash that is there already is replaced. Without, it stays,
        for a run must not make what has drifted the rule.
    :param applied: revisions that have just been applied, whatever was recorded of them before.
    :param facts: what to keep with it, for people.
    :raises StackError: what is there cannot be read, or others can read it.
    """
    problem = files.privacy_problem(directory)
    if problem:
        raise StackError(problem)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    contents: dict[str, dict[str, t.Any]] = {}
    # What could not be compared, or is masked in part, is no baseline.
    fingerprint = models["fingerprint"] if models["state"] == "compared" else None
    kept = read(directory, rows, fingerprint)
    path = _path(directory, rows, fingerprint) if fingerprint else ""
    before, after = (in_words(kept.differences) if kept.differences is not None else []), []
    if path:
        after = in_words(models["differences"])
        stays = kept.differences is not None and (not accept or list(kept.differences) == models["differences"])
        if stays:
            after = before
        else:
            contents[path] = {
                "format": _FORMAT,
                "recorded_at": now,
                "rows": sorted(rows),
                "fingerprint": fingerprint,
                "differences": models["differences"],
                **facts,
            }
    sources = {name: dict(item) for name, item in kept.sources.items()}
    for name, digest in models["sources"].items():
        known = sources.get(name)
        if known is None or (known["source"] != digest and (accept or name in applied)):
            sources[name] = {"source": digest, "recorded_at": now}
    if sources != kept.sources:
        contents[os.path.join(directory, _SOURCES)] = {"format": _FORMAT, "revisions": sources}
    return Change(contents, before, after, path)


def _path(directory: str, rows: t.Sequence[str], fingerprint: str | None) -> str:
    name = hashlib.sha256(json.dumps([sorted(rows), fingerprint]).encode()).hexdigest()[:16]
    return os.path.join(directory, f"baseline-{name}.json")


def _read(path: str) -> dict[str, t.Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StackError(f"{path} cannot be read: {error}. Move it away, and record a baseline anew.") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise StackError(f"{path} is no record of format {_FORMAT}. Move it away, and record a baseline anew.")
    return content
