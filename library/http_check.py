#!/usr/bin/python
# Copyright: the alembic-recovery authors
# SPDX-License-Identifier: MIT
"""Ask an application over HTTP as its users do, and compare the answers with what is expected."""

from __future__ import annotations

DOCUMENTATION = r"""
module: http_check
short_description: Ask an application over HTTP as its users do
description:
  - Sends the requests one after the other, and compares each answer with what is expected. What is
    captured from one answer can be used in the URL of the next, as a list leads to its first entry.
  - It only looks. Certificates and host names are always verified. A redirect is followed on the same host and
    on no other. A captured value never leads to another host than the URL names. Proxy settings are ignored.
  - No more than O(max_body) bytes of an answer are read, and no more than a check needs.
version_added: 0.1.0
author: The alembic-recovery authors
extends_documentation_fragment: [looks]
options:
  checks:
    description: The requests, in their order.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What the result is called. Each name comes once.
        type: str
        required: true
      url:
        description:
          - An C(https) or C(http) URL without credentials. C({name}) stands for a value that an earlier check
            captured; what follows the host directly must begin with a slash.
        type: str
        required: true
      method:
        description: The method of the request.
        type: str
        choices: [GET, HEAD]
        default: GET
      status:
        description: The status that is expected. Without it, V(206) where a range is asked for, else V(200).
        type: int
      content_type:
        description: The media type that is expected, without parameters.
        type: str
      contains:
        description: Text that must be in the answer.
        type: str
      json_not_empty:
        description:
          - A dotted path in the JSON answer (C(items), C(items.0.tags)) where something must be. The empty
            path is the whole document. An empty list, object or string, and V(null), are nothing.
        type: str
      min_length:
        description: The least length of the whole in bytes, also where only a part is asked for.
        type: int
      range:
        description: Ask for these bytes only, as C(0-15) or C(0-). All of them must come.
        type: str
      first_bytes:
        description: The bytes that the answer must begin with, hexadecimal.
        type: str
      capture:
        description: Values to take from the JSON answer for the URLs of later checks, C(name) by dotted path.
        type: dict
  ca_path:
    description: A file with the PEM certificates of the authorities to trust, instead of the system's.
    type: path
  timeout:
    description: Seconds for one request with its redirects.
    type: float
    default: 10
  retries:
    description: How often to repeat the checks that failed, for a service that is still starting.
    type: int
    default: 0
  delay:
    description: Seconds between two attempts.
    type: float
    default: 2
  patience:
    description:
      - Seconds for all checks and attempts together. After that, nothing is repeated, and a check that was not tried
        yet gets one second.
    type: float
  max_body:
    description: The most that is read of an answer, in bytes.
    type: int
    default: 4194304
  fail:
    description: Fail if a check failed. With V(false), only report it.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Look at the application as its users do
  http_check:
    ca_path: /etc/ssl/certs/ca-certificates.crt
    checks:
      - {name: front page, url: "https://songs.example.com/", contains: "<title>"}
      - name: songs
        url: https://songs.example.com/api/v1/songs
        json_not_empty: items
        capture: {song_id: items.0.id}
      - name: song
        url: https://songs.example.com/api/v1/songs/{song_id}
        capture: {audio: audio_url}
      - name: audio
        url: https://songs.example.com{audio}
        range: 0-15
        content_type: audio/wav
        min_length: 1000
        first_bytes: "52494646"
    retries: 15
  delegate_to: localhost
"""

RETURN = r"""
ok:
  description: Whether all checks held.
  returned: always
  type: bool
  sample: false
failed_checks:
  description: The names of those that did not.
  returned: always
  type: list
  elements: str
  sample: [songs]
summary:
  description: One line for each check that failed, and what to do next; or that all held.
  returned: always
  type: str
  sample: 4 of 4 HTTP checks are as expected.
checks:
  description: One result for each check, in their order.
  returned: always
  type: list
  elements: dict
  sample:
    - name: songs
      method: GET
      url: https://songs.example.com/api/v1/songs
      ok: false
      status: 500
      expected_status: 200
      content_type: application/json
      length: 153
      reason: GET https://songs.example.com/api/v1/songs answered 500, expected 200.
      advice: read the log of the service, and compare its answer with what the check expects
      body_excerpt: '{"error": "column songs.sketch_id does not exist"}'
      seconds: 0.041
      attempts: 1
"""

import typing as t

from ansible.module_utils.alembic_recovery import http
from ansible.module_utils.alembic_recovery.errors import RecoveryError
from ansible.module_utils.basic import AnsibleModule

CHECK: dict[str, t.Any] = {
    "name": {"type": "str", "required": True},
    "url": {"type": "str", "required": True},
    "method": {"type": "str", "choices": ["GET", "HEAD"], "default": "GET"},
    "status": {"type": "int"},
    "content_type": {"type": "str"},
    "contains": {"type": "str"},
    "json_not_empty": {"type": "str"},
    "min_length": {"type": "int"},
    "range": {"type": "str"},
    "first_bytes": {"type": "str"},
    "capture": {"type": "dict"},
}
ARGUMENTS: dict[str, t.Any] = {
    "checks": {"type": "list", "elements": "dict", "required": True, "options": CHECK},
    "ca_path": {"type": "path"},
    "timeout": {"type": "float", "default": 10},
    "retries": {"type": "int", "default": 0},
    "delay": {"type": "float", "default": 2},
    "patience": {"type": "float"},
    "max_body": {"type": "int", "default": http.MAX_BODY},
    "fail": {"type": "bool", "default": True},
}


def main() -> None:
    """Do the checks and report them."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    params = module.params
    try:
        results = http.run(
            http.parse_checks(params["checks"]),
            ca_path=params["ca_path"],
            timeout=params["timeout"],
            retries=params["retries"],
            delay=params["delay"],
            max_body=params["max_body"],
            patience=params["patience"],
        )
    except RecoveryError as error:
        module.fail_json(msg=error.message, **error.details)
    failed = [result["name"] for result in results if not result["ok"]]
    found = {"checks": results, "ok": not failed, "failed_checks": failed, "summary": http.summary(results)}
    if failed and params["fail"]:
        module.fail_json(msg=found["summary"], **found)
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
