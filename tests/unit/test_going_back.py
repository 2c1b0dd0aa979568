"""The way back: exactly one choice for each evidence, and never one that loses what nobody has accepted."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex

import pytest
from ansible.module_utils.alembic_recovery.going_back import (
    WAYS,
    Choice,
    Downgrade,
    Evidence,
    Kept,
    Live,
    Restore,
    Way,
    Written,
    choose,
)

SAME = {"version_as_before": True, "catalog_as_before": True, "content_as_before": True}
CHANGED = {"version_as_before": False, "catalog_as_before": False, "content_as_before": False}

OLD = Live("old", open=True, **SAME)
CLOSED = Live("old", version_as_before=None)
NEW = Live("new", open=True, **CHANGED)
MIGRATED = Live("old", open=True, **CHANGED)
PARTIAL = dataclasses.replace(MIGRATED, partial=True)
OTHER = Live("other", open=True, **CHANGED)
MISSING = Live("missing")

KEPT = Kept("aiproxy_old_20251021t031500z_7f3a", oid_as_recorded=True)
STRANGER = dataclasses.replace(KEPT, oid_as_recorded=False)
ASIDE = Kept("aiproxy_aside_20251021t031500z_7f3a", oid_as_recorded=True, aside=True, open=True)

NONE_WRITTEN = Written(0)
WRITTEN = Written(3, 1, ["songs: 3 rows written since, 1 fewer than then."])

LOSSLESS = Downgrade("0f86", True, False, True, lossless=True)
LOSSY = dataclasses.replace(LOSSLESS, lossless=False, loss=["rules.replacement: 4 rows", "songs.sketch_id: 2 rows"])
USED = dataclasses.replace(LOSSLESS, written=["public.song_sketches: 3 rows"])
REHEARSED_NOT = dataclasses.replace(LOSSLESS, lossless=None)
UNREHEARSED_ACCEPTED = dataclasses.replace(REHEARSED_NOT, accepted_loss=[])

BACKUP = Restore("20251021T031500Z-7f3a", "2025-10-21 03:15 UTC", compared=True)
STILL = dataclasses.replace(BACKUP, nothing_written_since=True)
BUSY = dataclasses.replace(BACKUP, nothing_written_since=False)
ACCEPTED = dataclasses.replace(BACKUP, accepted=BACKUP.run_id)
READ_THROUGH = dataclasses.replace(STILL, compared=False)
DAMAGED = dataclasses.replace(STILL, problems=["aiproxy.dump is not what was written."])


def accepting(written: Written, number: int) -> Written:
    return dataclasses.replace(written, accepted=number)


AUTOMATIC: list[tuple[str, Evidence, str | None]] = [
    # -- nothing
    ("as it was", Evidence(OLD), "nothing"),
    ("as it was, with all other ways there", Evidence(OLD, False, KEPT, WRITTEN, LOSSLESS, STILL), "nothing"),
    ("written by the application beside a clone", Evidence(Live("old", True, True, True, False)), "nothing"),
    ("content changed in place", Evidence(Live("old", True, True, True, False), in_place=True), None),
    ("content in place not compared", Evidence(Live("old", True, True, True, None), in_place=True), None),
    ("version not read", Evidence(Live("old", True, None, True, True)), None),
    ("catalog not read", Evidence(Live("old", True, True, None, True)), None),
    ("version moved", Evidence(Live("old", True, False, True, True)), None),
    # -- open
    ("closed, clone", Evidence(CLOSED), "open"),
    ("closed, clone, all other ways there", Evidence(CLOSED, False, KEPT, NONE_WRITTEN, LOSSLESS, STILL), "open"),
    ("closed, clone, but somebody else changed it", Evidence(Live("old", False, True, False, True)), None),
    ("closed, in place, as it was", Evidence(dataclasses.replace(OLD, open=False), in_place=True), "open"),
    ("closed, in place, not compared", Evidence(CLOSED, in_place=True), None),
    ("closed, in place, content changed", Evidence(Live("old", False, True, True, False), in_place=True), None),
    ("aside, as it was", Evidence(Live("missing", **SAME), True, ASIDE), "open"),
    ("aside, changed, backup compared", Evidence(Live("missing", **CHANGED), True, ASIDE, restore=STILL), "restore"),
    ("aside, half a revision", Evidence(Live("missing", partial=True, **SAME), True, ASIDE, restore=STILL), "restore"),
    (
        "aside, but another database",
        Evidence(Live("missing", **SAME), True, dataclasses.replace(ASIDE, oid_as_recorded=False)),
        None,
    ),
    # -- swap back
    ("swapped, nothing written", Evidence(NEW, False, KEPT, NONE_WRITTEN), "swap_back"),
    ("swapped, closed still, nothing written", Evidence(Live("new"), False, KEPT, NONE_WRITTEN), "swap_back"),
    ("swapped, nothing written, lossless downgrade", Evidence(NEW, False, KEPT, NONE_WRITTEN, LOSSLESS), "swap_back"),
    ("swapped, nothing written, lossy downgrade", Evidence(NEW, False, KEPT, NONE_WRITTEN, LOSSY), "swap_back"),
    ("swapped, written", Evidence(NEW, False, KEPT, WRITTEN), None),
    ("swapped, written and accepted", Evidence(NEW, False, KEPT, accepting(WRITTEN, 4)), "swap_back"),
    ("swapped, more written than accepted", Evidence(NEW, False, KEPT, accepting(WRITTEN, 3)), None),
    ("swapped, less written than accepted", Evidence(NEW, False, KEPT, accepting(WRITTEN, 5)), None),
    ("swapped, accepted zero", Evidence(NEW, False, KEPT, accepting(WRITTEN, 0)), None),
    ("swapped, only deleted", Evidence(NEW, False, KEPT, Written(0, 2)), None),
    ("swapped, not counted", Evidence(NEW, False, KEPT, None), None),
    ("swapped, old one gone", Evidence(NEW, False, None, NONE_WRITTEN), None),
    ("swapped, another one under its name", Evidence(NEW, False, STRANGER, NONE_WRITTEN), None),
    ("swapped, old one was opened", Evidence(NEW, False, dataclasses.replace(KEPT, open=True), NONE_WRITTEN), None),
    ("an unknown database in its place", Evidence(OTHER, False, KEPT, NONE_WRITTEN, LOSSLESS, STILL), None),
    ("no database in its place, old one kept", Evidence(MISSING, False, KEPT, None), "swap_back"),
    ("no database at all", Evidence(MISSING), None),
    # -- downgrade: written rows are kept by it, but for those in what goes with it
    ("written into what goes with it", Evidence(NEW, False, None, WRITTEN, USED), None),
    (
        "written into what goes with it, and accepted",
        Evidence(NEW, downgrade=dataclasses.replace(USED, accepted_loss=USED.written)),
        "downgrade",
    ),
    (
        "written into what goes with it, not known",
        Evidence(NEW, downgrade=dataclasses.replace(LOSSLESS, written=None)),
        None,
    ),
    ("written, lossless downgrade", Evidence(NEW, False, KEPT, WRITTEN, LOSSLESS), "downgrade"),
    ("written and accepted, lossless", Evidence(NEW, False, KEPT, accepting(WRITTEN, 4), LOSSLESS), "swap_back"),
    ("old one gone, lossless downgrade", Evidence(NEW, False, None, WRITTEN, LOSSLESS), "downgrade"),
    ("old one gone, lossy downgrade", Evidence(NEW, False, None, NONE_WRITTEN, LOSSY), None),
    (
        "old one gone, loss accepted in another order",
        Evidence(NEW, downgrade=dataclasses.replace(LOSSY, accepted_loss=list(reversed(LOSSY.loss)))),
        "downgrade",
    ),
    (
        "a part of the loss accepted",
        Evidence(NEW, downgrade=dataclasses.replace(LOSSY, accepted_loss=LOSSY.loss[:1])),
        None,
    ),
    (
        "more than the loss accepted",
        Evidence(NEW, downgrade=dataclasses.replace(LOSSY, accepted_loss=[*LOSSY.loss, "x"])),
        None,
    ),
    ("no loss accepted", Evidence(NEW, downgrade=dataclasses.replace(LOSSY, accepted_loss=[])), None),
    (
        "loss that could not be named",
        Evidence(NEW, downgrade=dataclasses.replace(LOSSY, loss=[], accepted_loss=[])),
        None,
    ),
    ("lossless, and yet a loss is named", Evidence(NEW, downgrade=dataclasses.replace(LOSSY, lossless=True)), None),
    ("not rehearsed", Evidence(NEW, downgrade=REHEARSED_NOT), None),
    ("not rehearsed, empty loss accepted", Evidence(NEW, downgrade=UNREHEARSED_ACCEPTED), None),
    ("in place, migrated", Evidence(MIGRATED, True, downgrade=LOSSLESS, restore=STILL), "downgrade"),
    ("in place, half a revision", Evidence(PARTIAL, True, downgrade=LOSSLESS, restore=STILL), "restore"),
    ("an empty downgrade", Evidence(NEW, downgrade=dataclasses.replace(LOSSLESS, impossible=["d464 is empty."])), None),
    *(
        (f"downgrade, {name} {value}", Evidence(NEW, downgrade=dataclasses.replace(LOSSLESS, **{name: value})), None)
        for name, value in [
            ("code_knows_target", False),
            ("code_knows_target", None),
            ("code_knows_more", True),
            ("code_knows_more", None),
            ("code_has_revisions", False),
            ("code_has_revisions", None),
        ]
    ),
    ("version rows not read", Evidence(Live("new", True), downgrade=LOSSLESS), None),
    # -- restore
    ("only a backup, nothing written since", Evidence(NEW, restore=STILL), "restore"),
    ("only a backup, written since", Evidence(NEW, restore=BUSY), None),
    ("only a backup, not known what was written", Evidence(NEW, restore=BACKUP), None),
    ("a backup, accepted by its name", Evidence(NEW, restore=ACCEPTED), "restore"),
    ("a backup, another name accepted", Evidence(NEW, restore=dataclasses.replace(BACKUP, accepted="yes")), None),
    ("a backup that was not restored yet", Evidence(NEW, restore=READ_THROUGH), None),
    ("a damaged backup", Evidence(NEW, restore=DAMAGED), None),
    ("counted rows against a still backup", Evidence(NEW, False, None, WRITTEN, None, STILL), None),
    ("no database, a backup", Evidence(MISSING, restore=STILL), "restore"),
    ("an unknown database, a backup", Evidence(OTHER, restore=STILL), None),
    ("nothing is there", Evidence(NEW), None),
]  # fmt: skip


@pytest.mark.parametrize(("evidence", "way"), [case[1:] for case in AUTOMATIC], ids=[case[0] for case in AUTOMATIC])
def test_choice(evidence: Evidence, way: str | None) -> None:
    assert choose(evidence).way == way


NAMED: list[tuple[str, Evidence, str, str | None]] = [
    ("a later way than the first", Evidence(NEW, False, KEPT, NONE_WRITTEN, LOSSLESS), "downgrade", "downgrade"),
    ("restore, though it is as it was", Evidence(OLD, restore=STILL), "restore", "restore"),
    ("not restored yet: it proves itself before the swap", Evidence(NEW, restore=READ_THROUGH), "restore", "restore"),
    ("an unknown database, by name", Evidence(OTHER, restore=STILL), "restore", "restore"),
    ("swap back, written", Evidence(NEW, False, KEPT, WRITTEN), "swap_back", None),
    ("swap back, written, never another instead", Evidence(NEW, False, KEPT, WRITTEN, LOSSLESS), "swap_back", None),
    ("swap back, accepted", Evidence(NEW, False, KEPT, accepting(WRITTEN, 4)), "swap_back", "swap_back"),
    ("swap back, not counted", Evidence(NEW, False, KEPT), "swap_back", None),
    ("downgrade, not rehearsed", Evidence(NEW, downgrade=REHEARSED_NOT), "downgrade", None),
    ("downgrade, lossy", Evidence(NEW, downgrade=LOSSY), "downgrade", None),
    ("downgrade from half a revision", Evidence(PARTIAL, True, downgrade=LOSSLESS), "downgrade", None),
    ("restore, loss not accepted", Evidence(NEW, restore=BACKUP), "restore", None),
    ("restore, damaged", Evidence(NEW, restore=DAMAGED), "restore", None),
    ("open what somebody else changed", Evidence(Live("old", False, True, False, True)), "open", "open"),
    ("open after the swap", Evidence(NEW, False, KEPT, NONE_WRITTEN), "open", None),
    ("nothing, but it has changed", Evidence(NEW), "nothing", None),
    ("no such way", Evidence(OLD), "downgrade -1", None),
]


@pytest.mark.parametrize(("evidence", "wanted", "way"), [case[1:] for case in NAMED], ids=[case[0] for case in NAMED])
def test_the_named_way_or_none(evidence: Evidence, wanted: str, way: str | None) -> None:
    assert choose(evidence, wanted).way == way


def find(choice: Choice, name: str) -> Way:
    return next(way for way in choice.ways if way.name == name)


@pytest.mark.parametrize("evidence", [case[1] for case in AUTOMATIC], ids=[case[0] for case in AUTOMATIC])
def test_all_ways_are_explained_in_order(evidence: Evidence) -> None:
    choice = choose(evidence)
    assert [way.name for way in choice.ways] == list(WAYS)
    for way in choice.ways:
        assert way.why
        assert all(text.endswith((".", "Then:", ":")) for text in [*way.why, *way.loses, *way.needs])
        assert way.possible or not way.proved
        assert bool(way.accept) <= bool(way.needs)
    assert choice.summary
    assert choice.next_step
    if choice.way is None:
        for way in choice.ways:
            assert way.why[0] in choice.summary


def test_what_is_lost_is_said_with_the_command_that_accepts_it() -> None:
    written = dataclasses.replace(WRITTEN, exported_to="/var/backups/written.jsonl")
    choice = choose(Evidence(NEW, False, KEPT, written))
    way = find(choice, "swap_back")
    assert way.loses == [
        "songs: 3 rows written since, 1 fewer than then.",
        "Going back loses these 4 changes.",
        "The rows are kept in /var/backups/written.jsonl.",
    ]
    assert choice.next_step == (
        "4 changes would be lost. To accept exactly that: ansible-playbook playbooks/rollback.yml -l {stack} "
        "-e rollback_way=swap_back -e rollback_accept_written=4"
    )


def test_the_command_that_accepts_a_named_loss_does() -> None:
    loss = ["rules.replacement: 4 rows with 'it''s' $HOME"]
    choice = choose(Evidence(NEW, downgrade=dataclasses.replace(LOSSY, loss=loss)))
    words = shlex.split(choice.next_step)
    assert json.loads(words[-1]) == {"rollback_accept_loss": loss}


def test_nothing_unaccepted_is_ever_chosen() -> None:
    """Every combination of the evidence above, with each name."""
    lives = [OLD, CLOSED, NEW, MIGRATED, PARTIAL, OTHER, MISSING, Live("missing", **SAME)]
    kept = [None, KEPT, STRANGER, ASIDE]
    counted = [None, NONE_WRITTEN, WRITTEN, accepting(WRITTEN, 4), accepting(WRITTEN, 1)]
    downs = [None, LOSSLESS, LOSSY, REHEARSED_NOT, dataclasses.replace(LOSSY, accepted_loss=LOSSY.loss)]
    backups = [None, STILL, BACKUP, DAMAGED, READ_THROUGH]
    for live, in_place, old, written, down, backup, wanted in itertools.product(
        lives, (True, False), kept, counted, downs, backups, (None, *WAYS)
    ):
        choice = choose(Evidence(live, in_place, old, written, down, backup), wanted)
        if choice.way is None:
            continue
        way = find(choice, choice.way)
        assert wanted in (None, choice.way)
        assert way.possible
        assert not way.needs
        assert way.proved or wanted == choice.way
        accepted = {
            "swap_back": written is not None and written.accepted == written.rows + written.fewer,
            "downgrade": down is not None and down.accepted_loss == down.loss,
            "restore": backup is not None and backup.accepted == backup.run_id,
        }
        assert not way.loses or accepted[choice.way]
