"""Speaking with the agent: one process start in the application's environment per question."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pkgutil
import time
import typing as t

from ansible.module_utils.alembic_recovery.errors import AgentError, CommandError
from ansible.module_utils.alembic_recovery.process import Conversation
from ansible.module_utils.alembic_recovery.runtime import DockerRuntime, Runtime

# The agent comes over standard input, by its length, and the rest of standard input is its channel: nothing is written
# into the application's container, and the command line holds no more than this.
_BOOT = "import sys;exec(compile(sys.stdin.buffer.read(int(sys.argv[1])),'alembic-recovery-agent','exec'))"

# The agent imports its parts by their full names, which are not there in the application's environment. Nothing of the
# working directory may be seen meanwhile: an application may keep its migrations in a package called `alembic`.
_ASSEMBLED = """
import sys, types
sys.path[:] = [entry for entry in sys.path if entry != ""]
sys.dont_write_bytecode = True
for name, text in {parts!r}.items():
    sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), sys.modules[name].__dict__)
exec(compile({main!r}, "alembic-recovery-agent", "exec"))
"""
_PACKAGE = "ansible.module_utils.alembic_recovery"
_PARTS = (
    # In the order in which they need each other.
    "agent_config", "agent_declared", "agent_sessions", "agent_listen", "agent_models", "agent_source",
)  # fmt: skip

Message = t.Dict[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Meanwhile:
    """Something to do each time that the agent has been silent for so many seconds: some `times`, and `then`."""

    act: t.Callable[[], None]
    every: float
    times: int
    then: float


class Dialogue:
    """A running agent that has been given its request."""

    def __init__(self, conversation: Conversation, where: str, on_message: t.Callable[[Message], None] | None) -> None:
        self._conversation = conversation
        self._where = where
        self._on_message = on_message
        self.hello: Message = {}

    def messages(self, timeout: float, meanwhile: Meanwhile | None = None) -> t.Iterator[Message]:
        """What it reports, until it says that it has ended.

        :param timeout: seconds of silence that are accepted.
        :param meanwhile: what to do while it is silent.
        :raises AgentError: it reported an error, ended without a last word, or fell silent.
        """
        while True:
            try:
                line = self._line(timeout, meanwhile)
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

    def _line(self, timeout: float, meanwhile: Meanwhile | None) -> str | None:
        deadline = time.monotonic() + timeout
        if meanwhile is None:
            return self._conversation.read_line(timeout)
        looks = 0
        while True:
            pause = meanwhile.every if looks < meanwhile.times else meanwhile.then
            try:
                return self._conversation.read_line(min(pause, max(deadline - time.monotonic(), 0.0)))
            except CommandError:
                if time.monotonic() >= deadline:
                    raise
                meanwhile.act()
                looks += 1

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
        text = f"The application's Python in {self._where} {how}."
        if not self.hello:
            text += f" Its last words: {' / '.join(said[-3:]) or 'none'}."
            text += " Are app.python and app.workdir in recovery_stack those of the application?"
        # Later words are the application's own: statements with their parameters may be among them.
        return AgentError(text, kind="ended", rc=rc)

    def _reported(self, message: Message) -> AgentError:
        kind = message["kind"]
        text = f"The application's Alembic in {self._where} failed: {kind}: {message['message']}"
        if kind == "ImportError" and "executable" in message:
            text = (
                f"{message['executable']} in {self._where} has no Alembic or SQLAlchemy ({message['message']}). "
                "Set app.python in recovery_stack to the application's own interpreter."
            )
        elif kind.endswith((".RedirectError", ".AmbiguousStepError", ".PoolerError")):
            text = f"The application's Alembic in {self._where} was stopped: {message['message']}"
        elif kind.endswith(".SetupError"):
            text = message["message"]
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
    source = assembled().encode()
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


def base_request(application: t.Mapping[str, t.Any]) -> Message:
    """The part of a request that says where the application's migrations are, and how its own command finds them.

    :param application: the option `application` of the modules.
    """
    return {
        "config": application["alembic_config"],
        "section": application["alembic_section"],
        "x_arguments": application.get("x_arguments") or [],
        "script_location": application.get("script_location"),
        "options": application.get("alembic_options") or {},
        "prepare": application.get("prepare"),
        "redirect": application.get("redirect"),
    }


def assembled() -> str:
    """The agent and its parts as one program."""
    texts = {}
    for name in ("agent", *_PARTS):
        source = pkgutil.get_data(_PACKAGE, f"{name}.py")
        assert source is not None
        texts[f"{_PACKAGE}.{name}"] = source.decode()
    return _ASSEMBLED.format(main=texts.pop(f"{_PACKAGE}.agent"), parts=texts)


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
