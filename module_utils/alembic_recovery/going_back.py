"""From evidence to exactly one way back: pure, without a look at anything but its arguments.

The ways, the least invasive first: `nothing`, `open` (the old database, before the swap), `swap_back` (after it),
`downgrade`, `restore`. A way is *possible* if what it stands on is there, and *proved* if it is known to end where the
run began. What it would lose has to be accepted by its exact name or number; until then the way *needs* that, and is
never taken. Chosen is the first way that is possible, proved and needs nothing; or the one that the operator has named,
if it is possible and needs nothing.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import typing as t

#: The ways back, the least invasive first.
WAYS: t.Sequence[str] = ("nothing", "open", "swap_back", "downgrade", "restore")

_ROLLBACK = "ansible-playbook playbooks/rollback.yml -l {stack}"
_STATUS = "ansible-playbook playbooks/status.yml -l {stack}"


@dataclasses.dataclass(frozen=True)
class Live:
    """What carries the application's database name now, and how it compares with what was there before the run.

    `is_` is ``old`` (by its oid, the one from before the run), ``new`` (the one that the run has made), ``other``
    (neither), or ``missing``. ``None`` in a comparison: it could not be made. Where the old database is put aside for
    work in place, and the name is ``missing``, the comparison is of that.
    """

    is_: str
    open: bool = False
    version_as_before: bool | None = None
    catalog_as_before: bool | None = None
    content_as_before: bool | None = None
    # A state that is neither that of before nor a revision's: a revision that was half applied.
    partial: bool = False


@dataclasses.dataclass(frozen=True)
class Kept:
    """The old database under another name (kept after a swap, or put aside for work in place): found by the name."""

    name: str
    oid_as_recorded: bool
    aside: bool = False
    open: bool = False


@dataclasses.dataclass(frozen=True)
class Written:
    """What pg_written has counted since the swap, and the sum that the operator has accepted to lose."""

    rows: int
    fewer: int = 0
    sentences: t.Sequence[str] = ()
    accepted: int | None = None
    exported_to: str | None = None


@dataclasses.dataclass(frozen=True)
class Downgrade:
    """What is known of the way down to `target`, an absolute revision.

    `code_knows_target` and `code_knows_more` are of the code that will run afterwards, `code_has_revisions` of the code
    that would go down. `lossless` is what a rehearsal has found (``None``: there was none), `loss` what it has named.
    `written`: what clients have put since into tables and columns that go with it, of which no rehearsal could know.
    ``None``: it could not be told.
    """

    target: str
    code_knows_target: bool | None = None
    code_knows_more: bool | None = None
    code_has_revisions: bool | None = None
    impossible: t.Sequence[str] = ()
    lossless: bool | None = None
    loss: t.Sequence[str] = ()
    accepted_loss: t.Sequence[str] | None = None
    written: t.Sequence[str] | None = ()


@dataclasses.dataclass(frozen=True)
class Restore:
    """A backup: `problems` says why it cannot be restored (not intact, of another cluster or database, newer, no room).

    `compared`: it was restored and compared with its manifest. `accepted` is the run id that the operator has given.
    `foreign`: a dump from elsewhere, without a manifest; its `run_id` is the name of the file.
    """

    run_id: str
    created_at: str
    problems: t.Sequence[str] = ()
    compared: bool = False
    nothing_written_since: bool | None = None
    accepted: str | None = None
    foreign: bool = False


@dataclasses.dataclass(frozen=True)
class Evidence:
    """All that the choice is made from. `in_place`: the run works on the application's own database, not on a clone."""

    live: Live
    in_place: bool = False
    kept: Kept | None = None
    written: Written | None = None
    downgrade: Downgrade | None = None
    restore: Restore | None = None


@dataclasses.dataclass(frozen=True)
class Way:
    """One way back. `why` says why it is possible and proved, or is not; `loses` and `needs` are for the operator."""

    name: str
    possible: bool
    proved: bool
    why: t.Sequence[str]
    loses: t.Sequence[str] = ()
    needs: t.Sequence[str] = ()
    # What to add to the command to accept it.
    accept: str = ""

    @property
    def ready(self) -> bool:
        """Whether nothing keeps it from being taken on the operator's word."""
        return self.possible and not self.needs


@dataclasses.dataclass(frozen=True)
class Choice:
    """The way that is taken (``None``: refused), why in one sentence, what to do next, and all the ways."""

    way: str | None
    summary: str
    next_step: str
    ways: t.Sequence[Way]


def choose(evidence: Evidence, wanted: str | None = None) -> Choice:
    """The way back for this evidence.

    Commands in the answer have the place holder ``{stack}`` for the limit of the run.

    :param wanted: the way that the operator has named, or nothing.
    """
    judges = (_nothing, _open, _swap_back, _downgrade, _restore)
    ways = [judge(evidence) for judge in judges]
    if wanted is not None:
        return _named(ways, wanted)
    for way in ways:
        if way.ready and way.proved:
            return Choice(way.name, f"{way.name}: {' '.join(way.why)}", _ROLLBACK, ways)
    return _refused(ways, "No way back is proved and loses nothing.")


def _named(ways: t.Sequence[Way], wanted: str) -> Choice:
    found = [way for way in ways if way.name == wanted]
    if not found:
        return Choice(
            None,
            f"There is no way back called {wanted!r}.",
            f"Name one of {', '.join(WAYS)} as rollback_way, or none: {_ROLLBACK}",
            ways,
        )
    if found[0].ready:
        return Choice(wanted, f"{wanted}, as the operator has named: {' '.join(found[0].why)}", _ROLLBACK, ways)
    return _refused(ways, f"The named way {wanted} cannot be taken.", found[0])


def _refused(ways: t.Sequence[Way], summary: str, named: Way | None = None) -> Choice:
    reasons = [f"{way.name}: {' '.join([*way.why, *way.loses])}" for way in ways]
    open_ = [way for way in ([named] if named else ways) if way.possible and way.needs]
    if open_:
        way = open_[0]
        next_step = f"{' '.join(way.needs)} {_ROLLBACK} -e rollback_way={way.name} {way.accept}".rstrip()
    else:
        unproved = [way.name for way in ways if way.ready]
        next_step = f"Look first: {_STATUS}"
        if unproved:
            next_step += f" Or name a way that is possible: {_ROLLBACK} -e rollback_way={unproved[0]}"
    return Choice(None, f"{summary} {' '.join(reasons)}", next_step, ways)


def _nothing(evidence: Evidence) -> Way:
    live = evidence.live
    if live.is_ != "old":
        return Way("nothing", False, False, [_carried(live)])
    if not live.open:
        return Way("nothing", False, False, ["The database is closed: nobody can use it as it is."])
    compared = {
        "version rows": live.version_as_before,
        "catalog": live.catalog_as_before,
        # The application itself writes to a database that is open. The run writes to it only where it works in place.
        "content": live.content_as_before if evidence.in_place else True,
    }
    differ = [name for name, same in compared.items() if same is False]
    unknown = [name for name, same in compared.items() if same is None]
    if differ:
        return Way("nothing", False, False, [f"Not what they were before the run: {', '.join(differ)}."])
    if unknown:
        return Way(
            "nothing", True, False, [f"It is the old database, but could not be compared: {', '.join(unknown)}."]
        )
    return Way("nothing", True, True, ["It is the old database, it is open, and it is what it was before the run."])


def _open(evidence: Evidence) -> Way:
    live, kept = evidence.live, evidence.kept
    if live.is_ == "missing" and kept is not None and kept.aside:
        if not kept.oid_as_recorded:
            return Way("open", False, False, [f"{kept.name} is not the old database: its oid is not the recorded one."])
        where = f"The old database is aside as {kept.name} and can have its name again"
    elif live.is_ == "old":
        if live.open:
            return Way("open", False, False, ["The database is open already."])
        where = "The old database is in its place, and closed"
    else:
        return Way("open", False, False, [_carried(live), "There is no old database in its place to be opened."])
    if not evidence.in_place:
        # Nobody can ask a closed database; but nobody could write to it, either.
        if False in (live.version_as_before, live.catalog_as_before):
            why = f"{where}; the run has worked on a clone only, but somebody else has changed its version or catalog."
            return Way("open", True, False, [why])
        return Way("open", True, True, [f"{where}; the run has worked on a clone only."])
    compared = (live.version_as_before, live.catalog_as_before, live.content_as_before)
    if False in compared or live.partial:
        return Way("open", False, False, [f"{where}, but the run has worked in it, and it is not what it was."])
    if None in compared:
        return Way("open", False, False, [f"{where}, but the run has worked in it, and it could not be compared."])
    return Way("open", True, True, [f"{where}; the run has worked in it, and it is what it was before."])


def _swap_back(evidence: Evidence) -> Way:
    live, kept, written = evidence.live, evidence.kept, evidence.written
    against = _against_swap_back(live, kept)
    if against or kept is None:
        return Way("swap_back", False, False, against)
    why = [f"The old database is kept as {kept.name}, closed since the swap."]
    if live.is_ == "missing":
        return Way("swap_back", True, True, [*why, "Nothing carries the application's name now."])
    if written is None:
        needs = ["What was written since the swap must be counted first; the playbook does that:"]
        return Way("swap_back", True, False, why, ["What was written since the swap is not known."], needs)
    number = written.rows + written.fewer
    if number == 0:
        return Way("swap_back", True, True, [*why, "Nothing was written since the swap."])
    loses = [*written.sentences, f"Going back loses these {number} changes."]
    if written.exported_to:
        loses.append(f"The rows are kept in {written.exported_to}.")
    if written.accepted == number:
        return Way("swap_back", True, True, why, loses)
    given = "" if written.accepted is None else f", and {written.accepted} was accepted"
    needs = [f"{number} changes would be lost{given}. To accept exactly that:"]
    return Way("swap_back", True, True, why, loses, needs, f"-e rollback_accept_written={number}")


def _against_swap_back(live: Live, kept: Kept | None) -> list[str]:
    if live.is_ not in ("new", "missing"):
        return [_carried(live), "Only the database of this run is swapped for the old."]
    if kept is None or kept.aside:
        return ["The old database is not there: it was never swapped, or was removed."]
    if not kept.oid_as_recorded:
        return [f"{kept.name} is not the old database: its oid is not the recorded one."]
    return [f"{kept.name} is open: somebody may have written to it since the swap."] if kept.open else []


def _downgrade(evidence: Evidence) -> Way:
    live, down = evidence.live, evidence.downgrade
    if down is None:
        return Way("downgrade", False, False, ["It is not known to which revision."])
    against = _against_downgrade(evidence, down)
    if against:
        return Way("downgrade", False, False, against)
    assert live.is_ in ("old", "new")
    why = [f"The code that will run afterwards knows {down.target} as its head, and the way down is there."]
    if down.lossless and not down.loss and down.written is None:
        why += ["A rehearsal has found it lossless.", "What was written since into what goes with it is not known."]
        return Way("downgrade", True, False, why)
    if down.lossless and not down.loss and not down.written:
        return Way("downgrade", True, True, [*why, "A rehearsal has found it lossless."])
    if down.lossless is None and not down.loss:
        needs = ["Rehearse it first (ansible-playbook playbooks/rehearse.yml -l {stack}), then:"]
        return Way("downgrade", True, False, [*why, "No rehearsal has gone this way."], [], needs)
    if not down.lossless and not down.loss:
        return Way("downgrade", False, False, why, ["The rehearsal has found a loss, and could not name it."])
    loss = [*down.loss, *(down.written or ())]
    loses = [f"{text.rstrip('.')}." for text in loss]
    if down.accepted_loss is not None and sorted(down.accepted_loss) == sorted(loss):
        return Way("downgrade", True, True, [*why, "The loss that is named is accepted."], loses)
    why.append(
        "A rehearsal has found that it loses something."
        if down.loss
        else "A rehearsal has found it lossless for what was there then; since, clients have used what goes with it."
    )
    accept = shlex.quote(json.dumps({"rollback_accept_loss": loss}, ensure_ascii=False))
    return Way("downgrade", True, False, why, loses, ["To accept exactly that loss:"], f"-e {accept}")


def _against_downgrade(evidence: Evidence, down: Downgrade) -> list[str]:
    """Why it cannot be gone at all; all reasons, not the first."""
    live, against = evidence.live, []
    if live.is_ not in ("old", "new"):
        against.append(_carried(live))
    if live.partial:
        against.append(
            "The database is in no revision's state: a downgrade would start from something it does not know."
        )
    if live.version_as_before is None:
        against.append("The version rows could not be read.")
    if live.version_as_before:
        against.append(f"The version rows are at {down.target} already.")
    if not down.code_knows_target:
        against.append(
            f"The code that will run afterwards does not know {down.target}, or could not be asked. "
            "Set rollback_image, or rollback_code_after, to where the code that does is."
        )
    if down.code_knows_more is not False:
        against.append(
            f"The code that will run afterwards knows more than {down.target}, or could not be asked: it would fail on "
            "the older schema, or migrate it again. Set rollback_image, or rollback_code_after, to where the code is "
            "whose head it is."
        )
    if not down.code_has_revisions:
        against.append("No code is there that has the revisions to go down.")
    return [*against, *down.impossible]


def _restore(evidence: Evidence) -> Way:
    backup = evidence.restore
    if backup is None:
        return Way("restore", False, False, ["There is no backup."])
    if backup.problems:
        return Way("restore", False, False, list(backup.problems))
    why = [f"Backup {backup.run_id} of {backup.created_at} is intact, and of this database."]
    proved = backup.compared
    if backup.foreign:
        why = [
            f"{backup.run_id} of {backup.created_at} is a dump from elsewhere, without a manifest.",
            "It is read through, restored, and compared with what it says itself before anything is swapped.",
        ]
    elif proved:
        why.append("It was restored and compared with its manifest.")
    else:
        why.append("It was not restored yet; it is compared with its manifest before anything is swapped.")
    if evidence.live.is_ == "other":
        proved = False
        why.append(f"{_carried(evidence.live)} It would be kept under another name.")
    written = evidence.written
    if backup.nothing_written_since and not (written and written.rows + written.fewer):
        return Way("restore", True, proved, why)
    loses = [f"All that was written since {backup.created_at} is lost."]
    if backup.nothing_written_since is None:
        loses = [f"All that was written since {backup.created_at} is lost; it is not known how much."]
    if backup.accepted == backup.run_id:
        return Way("restore", True, proved, why, loses)
    given = "" if backup.accepted is None else f", and {backup.accepted!r} was accepted"
    needs = [f"The backup is called {backup.run_id}{given}. To accept exactly that loss:"]
    return Way("restore", True, proved, why, loses, needs, f"-e rollback_accept_restore={backup.run_id}")


def _carried(live: Live) -> str:
    return {
        "old": "The application's name is carried by the old database.",
        "new": "The application's name is carried by the database that the run has made.",
        "missing": "No database carries the application's name.",
        "other": "The application's name is carried by a database that the run knows nothing of.",
    }[live.is_]
