"""What the replica's revisions are to make of its data, computed here once more, in Python."""

from __future__ import annotations

import base64

from tests.support.evidence import Seen, Witness

RULES = "select id, replacement from lyric_parsing_rules order by id"

# What the revisions change; everything else must be as it was.
CHANGED_ROWS = {"song_sketches"}
CHANGED_CONTENT = {"lyric_parsing_rules.replacement", "alembic_version.version_num"}
NEW_COLUMN = "songs.sketch_id"


def encoded(value: str | None) -> str | None:
    """Return what revision 234ea0f4b6c3 makes of a replacement: Base64, unless it decodes already."""
    if value is None:
        return None
    try:
        base64.b64decode(value).decode("utf-8")
    except ValueError:
        return base64.b64encode(value.encode("utf-8")).decode("ascii")
    return value


def replacements(witness: Witness) -> dict[int, str | None]:
    """Return the replacement of each rule."""
    return dict(witness.query(RULES))


def assert_only_the_revisions_have_changed_it(before: Seen, after: Seen) -> None:
    """Acceptance 3: row counts, and a checksum of each column of each table, apart from what the revisions change."""
    expected_rows = {**before.rows, "song_sketches": 0}
    assert after.rows == expected_rows
    kept = {name: text for name, text in before.content.items() if name not in CHANGED_CONTENT}
    assert kept.items() <= after.content.items()
    new = {name for name in after.content if name not in before.content}
    assert {name.split(".")[0] for name in new if name != NEW_COLUMN} == CHANGED_ROWS
    assert after.sequences == before.sequences
    gone = set(before.catalog) - set(after.catalog)
    assert gone == set()
    come = [line for line in after.catalog if line not in before.catalog]
    assert come
    assert [line for line in come if "sketch" not in line] == []
