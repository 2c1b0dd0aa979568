"""A part of the agent: the application's Alembic configuration, wherever it is kept, and what must be done before it.

What a layout needs is data of the request, never code of ours: `config`, `section`, `x_arguments`, `script_location`,
`options` and `prepare`. Like `agent.py`, it runs in the application's own Python: the standard library, Alembic, Python
3.8.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import typing as t

try:
    import alembic
    from alembic.config import Config
except ImportError:  # agent.py reports it
    pass

_PYPROJECT = "pyproject.toml"
_CORRECT = "Correct app.workdir or app.alembic_config in recovery_stack."


class SetupError(Exception):
    """The request names something that is not there."""


def read_config(request: t.Mapping[str, t.Any]) -> Config:
    """Alembic's configuration as its command line would read it, with what the request sets on top.

    That command line reads an ini file and, since Alembic 1.16, `[tool.alembic]` of pyproject.toml beside it; an
    application that makes its `Config` itself has neither, and says where its scripts are (`script_location`).

    :raises SetupError: there is no configuration at all, or this Alembic cannot read it.
    """
    name = str(request.get("config") or "alembic.ini")
    section = str(request.get("section") or "alembic")
    # env.py may read x arguments or options from here; the command line always gives them.
    x_arguments = [str(argument) for argument in request.get("x_arguments") or []]
    options = argparse.Namespace(x=x_arguments, config=name, name=section, raiseerr=True)
    reads_toml = hasattr(Config, "toml_file_name")
    toml = name if os.path.basename(name) == _PYPROJECT else _PYPROJECT
    ini = "alembic.ini" if toml == name else name
    in_toml = _has_alembic(toml)
    if (name == toml or not os.path.exists(ini)) and in_toml and not reads_toml:
        raise SetupError(
            "%s in %s has the configuration, and Alembic %s cannot read it there: 1.16 and later can. %s"
            % (toml, os.getcwd(), alembic.__version__, _CORRECT)
        )
    if not os.path.exists(ini) and not in_toml:
        if not request.get("script_location"):
            raise SetupError("There is no %s in %s. %s" % (name, os.getcwd(), _CORRECT))
        config = Config(ini_section=section, cmd_opts=options)
    elif reads_toml:
        config = Config(ini, toml_file=toml, ini_section=section, cmd_opts=options)
    else:
        config = Config(ini, ini_section=section, cmd_opts=options)
    given = dict(request.get("options") or {})
    if request.get("script_location"):
        given["script_location"] = request["script_location"]
    for option, value in given.items():
        # The values are meant as they stand: a password's percent sign is no reference to another option (trap 18).
        config.set_main_option(option, str(value).replace("%", "%%"))
    return config


@contextlib.contextmanager
def prepared(request: t.Mapping[str, t.Any]) -> t.Iterator[None]:
    """With the application made as its own command makes it, where its env.py needs one (`flask db` does).

    `prepare` is `module:name`. What has an `app_context` (a Flask application) is entered; anything else that can be
    called is called without arguments first. The working directory is on the path, as for the application's command.

    :raises SetupError: it is not there.
    """
    name = str(request.get("prepare") or "")
    if not name:
        yield
        return
    module, _colon, path = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found: t.Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise SetupError(
            "app.prepare is %s, which cannot be had in %s (%s: %s). Correct app.prepare or app.workdir in "
            "recovery_stack: module:name, as the application's own command finds it."
            % (name, os.getcwd(), type(error).__name__, error)
        ) from error
    if not hasattr(found, "app_context") and callable(found):
        found = found()
    with contextlib.ExitStack() as stack:
        if hasattr(found, "app_context"):
            stack.enter_context(found.app_context())
        yield


def _has_alembic(path: str) -> bool:
    """Whether a pyproject.toml configures Alembic; told from its text, for Python 3.8 has no reader of TOML."""
    try:
        with open(path, encoding="utf-8") as file:
            return any(line.strip().startswith(("[tool.alembic]", "[[tool.alembic.")) for line in file)
    except OSError:
        return False
