"""What must hold when the replica has been recovered: the same for both forms."""

from __future__ import annotations

from typing import Any

from replica.application import BROKEN, HEAD

# The bytes of a text, in hexadecimal, that Python's strict UTF-8 decoder accepts.
_UTF8_HEX = (
    "^([0-7][0-9a-f]"
    "|(c[2-9a-f]|d[0-9a-f])[89ab][0-9a-f]"
    "|(e0[ab][0-9a-f]|e[1-9abcef][89ab][0-9a-f]|ed[89][0-9a-f])[89ab][0-9a-f]"
    "|(f0[9ab][0-9a-f]|f[123][89ab][0-9a-f]|f48[0-9a-f])[89ab][0-9a-f][89ab][0-9a-f]"
    ")*$"
)
_BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"

# Every replacement reduced to what it means: strict Base64 of a text to that text's bytes, anything else to
# its own bytes. Unchanged and encoded-from-what-it-was give the same, anything else does not. There is no
# colon in here and no percent sign, which some clients would take for parameters.
REPLACEMENTS = f"""
select md5(string_agg(concat(id, ' ', coalesce(case when encoded and bytes ~ '{_UTF8_HEX}' then bytes
  else encode(convert_to(replacement, 'UTF8'), 'hex') end, 'null')), ',' order by id))
from (select id, replacement, encoded,
        case when encoded then encode(decode(replacement, 'base64'), 'hex') end as bytes
      from (select id, replacement,
              case when replacement ~ '{_BASE64}'
                then replace(encode(decode(replacement, 'base64'), 'base64'), chr(10), '') = replacement
                else false end as encoded
            from lyric_parsing_rules) as read) as known
""".strip()

# Rows that Python's lenient decoder cannot read, whatever they hold: not all ASCII, or no padding and a
# number of Base64 signs that four does not divide. The revision encodes every one of them, and what it
# encoded is never one of them.
UNENCODED = """
select count(*) from lyric_parsing_rules
where octet_length(replacement) <> char_length(replacement)
   or (strpos(replacement, '=') = 0
       and mod(char_length(regexp_replace(replacement, '[^A-Za-z0-9+/]', '', 'g')), 4) <> 0)
""".strip()


def expectation(base_url: str) -> dict[str, Any]:
    """The ``expect`` part of ``recovery_stack``.

    Args:
        base_url: Scheme, host and port under which users reach the replica.

    Returns:
        A dictionary for the inventory.
    """
    return {
        "current": BROKEN,
        "head": HEAD,
        "relations": ["song_sketches", "songs.sketch_id"],
        "queries": [
            {"name": "songs", "sql": "select count(*) from songs", "at_least": "before"},
            {"name": "rules", "sql": "select count(*) from lyric_parsing_rules", "equals": "before"},
            {"name": "replacements", "sql": REPLACEMENTS, "equals": "before"},
            {"name": "unencoded", "sql": UNENCODED, "equals": 0},
        ],
        "http": [
            {"name": "front page", "url": f"{base_url}/", "status": 200, "content_type": "text/html"},
            {
                "name": "songs",
                "url": f"{base_url}/api/v1/songs",
                "status": 200,
                "json_not_empty": "items",
                "capture": {"song_id": "items.0.id"},
            },
            {
                "name": "song",
                "url": f"{base_url}/api/v1/songs/{{song_id}}",
                "status": 200,
                "json_not_empty": "title",
                "capture": {"audio": "audio_url"},
            },
            {
                "name": "audio",
                "url": f"{base_url}{{audio}}",
                "range": "0-15",
                "status": 206,
                "content_type": "audio/wav",
                "min_length": 1000,
                "first_bytes": "52494646",
            },
            {"name": "worker", "url": f"{base_url}/api/v1/worker", "status": 200, "json_not_empty": "latest"},
        ],
    }
