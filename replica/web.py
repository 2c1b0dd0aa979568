"""Requests to a replica, with the server's certificate checked."""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replica.errors import ReplicaError


@dataclass(frozen=True)
class Answer:
    """What a server said.

    Attributes:
        status: The HTTP status.
        headers: Names in lower case.
        body: As it came.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    """Talks to one server, directly, whatever proxy the environment names.

    Attributes:
        base_url: Scheme, host and port.
        authority: The certificate authority that the server must be known to.
    """

    base_url: str
    authority: Path

    def request(
        self,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Mapping[str, Any] | None = None,
        timeout: float = 60,
    ) -> Answer:
        """Ask.

        Args:
            path: Path and query.
            headers: Further headers.
            data: Sent as JSON with POST.
            timeout: Seconds for the connection and each read.

        Returns:
            The answer, whatever its status.

        Raises:
            OSError: There is no connection, or the certificate is not good.
        """
        body = None if data is None else json.dumps(data).encode()
        kind = {} if data is None else {"Content-Type": "application/json"}
        request = urllib.request.Request(self.base_url + path, data=body, headers={**kind, **(headers or {})})  # noqa: S310
        context = ssl.create_default_context(cafile=str(self.authority))
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(request, timeout=timeout) as answer:
                return Answer(answer.status, _lower(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, _lower(error.headers), error.read())

    def wait(self, path: str, *, seconds: float) -> None:
        """Wait until a page answers with 200.

        Args:
            path: Path and query.
            seconds: How long.

        Raises:
            ReplicaError: It did not; the message says what was seen last.
        """
        end = time.monotonic() + seconds
        seen = "nothing"
        while time.monotonic() < end:
            try:
                answer = self.request(path, timeout=5)
                if answer.status == 200:
                    return
                seen = f"status {answer.status}"
            except OSError as error:
                seen = str(error)
            time.sleep(0.1)
        raise ReplicaError(f"{self.base_url}{path} gave {seen} after {seconds:g} s; expected status 200")


def _lower(headers: Any) -> dict[str, str]:
    """Headers with their names in lower case."""
    return {name.lower(): value for name, value in headers.items()}
