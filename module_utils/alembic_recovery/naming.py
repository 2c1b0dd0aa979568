"""The names of the databases that a run makes or puts aside: each says whose it is, what it is, and of which run."""

from __future__ import annotations

import re
import typing as t
import zlib

# NAMEDATALEN of PostgreSQL is 64: it cuts longer names silently, and two names could become one.
_LONGEST = 63
#: Those that hold what may still be wanted: they go only when a person says so, or with time.
KEPT = frozenset({"old", "replaced"})

#: What a name of ours can say a database is.
KINDS: t.Mapping[str, str] = {
    "new": "a clone that is migrated before it is swapped in",
    "old": "what the application used before a swap",
    "replaced": "what the application used before it was swapped back",
    "aside": "the application's own database while it is worked on in place, or counted",
    "restored": "a backup that was restored",
    "scratch": "a copy for a rehearsal",
    "before": "a copy of a rehearsal's start",
}


def stamp(run_id: str) -> str:
    """A run's name in the letters that a database's name can have without quotes.

    >>> stamp("20251021T031500Z-7f3a1c")
    '20251021t031500z_7f3a1c'
    """
    text = re.sub(r"[^a-z0-9]+", "_", run_id.lower()).strip("_")
    return text if len(text) <= 24 else f"{text[:15]}_{zlib.crc32(run_id.encode()):08x}"


def database(name: str, kind: str, run_id: str) -> str:
    """The name of a run's database of a kind, 63 bytes at the most.

    >>> database("aiproxy", "old", "20251021T031500Z-7f3a1c")
    'aiproxy_old_20251021t031500z_7f3a1c'
    """
    assert kind in KINDS
    end = f"_{kind}_{stamp(run_id)}"
    return _shortened(name, _LONGEST - len(end)) + end


def kind_of(name: str, candidate: str) -> str | None:
    """Which kind of database of ours beside `name` a `candidate` is by its name; ``None``: it is none of ours.

    >>> kind_of("aiproxy", "aiproxy_old_20251021t031500z_7f3a1c"), kind_of("aiproxy", "aiproxy_old_songs")
    ('old', None)
    """
    found = re.fullmatch(r"(.+)_(new|old|replaced|aside|restored|scratch|before)_([a-z0-9_]{1,24})", candidate)
    if found is None or _shortened(name, len(found[1].encode())) != found[1]:
        return None
    # A name that a person gave is left alone: the time of a run is a part of what we give.
    return found[2] if re.match(r"\d{8}t\d{6}z_", found[3]) else None


def _shortened(name: str, room: int) -> str:
    if len(name.encode()) <= room:
        return name
    tail = f"~{zlib.crc32(name.encode()):08x}"
    head = name.encode()[: max(room - len(tail), 1)].decode("utf-8", "ignore")
    return head + tail
