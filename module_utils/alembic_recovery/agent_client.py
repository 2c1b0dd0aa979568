"""Speaking with the agent: one process start in the application's environment per question."""

from __future__ import annotations

import contextlib
import json
import pkgutil
import typing as t

from ansible.module_utils.alembic_recovery.errors import AgentError, CommandError
from ansible.module_utils.alembic_recovery.process import Conversation
from ansible.module_utils.alembic_recovery.runtime import DockerRuntime, Runtime

# The agent comes over standard input, by its length, and the rest of standard input is its channel: nothing is written
# into the application's container, and the command line holds no more than this.
_BOOT = "import sys;exec(compile(sys.stdin.buffer.read(int(sys.argv[1])),'alembic-recovery-agent','exec'))"

Message = t.Dict[str, t.Any]


class Dialogue:
    """A running agent that has been given its request."""

    def __init__(self, conversation: Conversation, where: str, on_message: t.Callable[[Message], None] | None) -> None:
        self._conversation = conversation
        self._where = where
        self._on_message = on_message
        self.hello: Message = {}

    def messages(self, timeout: float) -> t.Iterator[Message]:
        """What it reports, until it says that it has ended.

        :param timeout: seconds of silence that are accepted.
        :raises AgentError: it reported an error, ended without a last word, or fell silent.
        """
        while True:
            try:
                line = self._conversation.read_line(timeout)
            except CommandError as error:
                raise AgentError(
                    f"The application's Alembic in {self._where} has been silent for {timeout:g} s and was ended.",
                    kind="silence",
                ) from error
            if line is None:
                raise self._ended_early()
            message = _parsed(line)
            if message is None:
                continue
            if self._on_message is not None:
                self._on_message(message)
            if message["event"] == "hello":
                self.hello = message
            elif message["event"] == "error":
                raise self._reported(message)
            elif message["event"] == "end":
                return
            yield message

    def go(self) -> None:
        """Let it take the next step."""
        self._conversation.send("go\n")

    def _ended_early(self) -> AgentError:
        try:
            rc: t.Any = self._conversation.wait()
        except CommandError:
            rc = "unknown"
        said = self._conversation.said.strip().splitlines()
        # Docker gives a signal as an exit code of 128 and its number.
        signal = -rc if isinstance(rc, int) and rc < 0 else 9 if rc == 137 else None
        how = f"was killed (signal {signal})" if signal else f"ended before it had answered (exit code {rc})"
        hint = "" if self.hello else " Are app.python and app.workdir in recovery_stack those of the application?"
        words = " / ".join(said[-3:]) or "none"
        return AgentError(
            f"The application's Python in {self._where} {how}. Its last words: {words}.{hint}",
            kind="ended",
            rc=rc,
        )

    def _reported(self, message: Message) -> AgentError:
        kind = message["kind"]
        text = f"The application's Alembic in {self._where} failed: {kind}: {message['message']}"
        if kind == "ImportError" and "executable" in message:
            text = (
                f"{message['executable']} in {self._where} has no Alembic or SQLAlchemy ({message['message']}). "
                "Set app.python in recovery_stack to the application's own interpreter."
            )
        elif kind.endswith(".SetupError"):
            text = f"{message['message']} Correct app.workdir or app.alembic_config in recovery_stack."
        return AgentError(text, kind=kind, sqlstate=message.get("sqlstate"))


@contextlib.contextmanager
def dialogue(
    runtime: Runtime,
    python: str,
    request: t.Mapping[str, t.Any],
    *,
    act: bool = False,
    purpose: str = "look",
    on_message: t.Callable[[Message], None] | None = None,
) -> t.Iterator[Dialogue]:
    """Start the agent in a runtime, and give it one request (see `agent.py` for its keys).

    :param python: the application's interpreter.
    :param act: the request changes something.
    :param on_message: called with every message as it arrives.
    :raises RecoveryError: it could not be started.
    """
    source = pkgutil.get_data("ansible.module_utils.alembic_recovery", "agent.py")
    assert source is not None
    words = [python, "-c", _BOOT, str(len(source))]
    with contextlib.ExitStack() as stack:
        try:
            conversation = stack.enter_context(runtime.converse(words, act=act, purpose=purpose))
        except CommandError as error:
            if error.details.get("argv") != words:
                raise
            raise AgentError(
                f"{error.message} Set app.python in recovery_stack to the application's own interpreter.",
                kind="not_started",
            ) from error
        conversation.send(source.decode())
        conversation.send(json.dumps(dict(request)) + "\n")
        yield Dialogue(conversation, runtime.where, on_message)


def ask(runtime: Runtime, python: str, request: t.Mapping[str, t.Any], *, timeout: float) -> list[Message]:
    """All messages that answer one request that only looks.

    A container that dies under the question (it restarts in a loop) is asked again in a one-off container.

    :raises AgentError: the agent reported an error or did not answer.
    """
    try:
        with dialogue(runtime, python, request) as talk:
            return list(talk.messages(timeout))
    except AgentError as error:
        if error.details.get("kind") != "ended" or not isinstance(runtime, DockerRuntime):
            raise
    with dialogue(runtime, python, request, act=True) as talk:
        return list(talk.messages(timeout))


def _parsed(line: str) -> Message | None:
    """A message, or nothing where something else got onto the agent's channel."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and "event" in message else None


def _packed() -> None:
    """Never called: Ansible packs only those files that are imported somewhere, and the agent is read as text."""
    from ansible.module_utils.alembic_recovery import agent  # noqa: F401
