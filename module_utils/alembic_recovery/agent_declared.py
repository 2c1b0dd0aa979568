"""A part of the agent: what revisions declare, collected without running them on a database.

Like `agent.py`, it runs in the application's own Python: the standard library, SQLAlchemy, Alembic, Python 3.8.

`upgrade()` is called with an `op` that records what Alembic would execute, and executes nothing. A revision's Python
code does run, so that is only done where it calls nothing but Alembic, SQLAlchemy, harmless parts of the standard
library, and functions of its own file; and while it runs, no SQLAlchemy engine connects or executes. Where a revision
asks the database something, what follows is unknown, and is said to be.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import enum
import io
import json
import re
import time
import types
import typing as t

try:
    from alembic.ddl import base as alembic_ddl
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import event, schema
    from sqlalchemy.engine import Engine
    from sqlalchemy.sql import dml
    from sqlalchemy.sql.elements import TextClause
    from sqlalchemy.types import TypeEngine
except ImportError:  # agent.py reports it
    pass

Facts = t.Dict[str, t.Any]

# Bounds, for a status must stay cheap on a chain of thousands: what comes next, and what came last.
_PENDING = 50
_APPLIED = 10
_SECONDS = 5.0

_HARMLESS = {
    *("alembic", "sqlalchemy", "builtins", "typing", "datetime", "uuid", "json", "enum", "decimal", "re", "textwrap"),
    *("string", "collections", "itertools", "functools", "math", "hashlib", "base64", "copy", "contextlib", "logging"),
    *("warnings", "operator"),
}
_NOT_HARMLESS = {"open", "exec", "eval", "compile", "__import__", "input", "breakpoint", "exit", "quit"}
_NOT_HARMLESS |= {"getattr", "setattr", "delattr", "globals", "locals", "vars"}
# Code that does something else in offline mode, which the recording looks like.
_DEPENDS_ON_MODE = re.compile(r"is_offline_mode|\bas_sql\b|get_x_argument")
_REMOVES = re.compile(r"drop|rename|set\s+schema", re.IGNORECASE)
# What is removed with these need not be named.
_REMOVES_UNNAMED = re.compile(r"cascade|\bexecute\b|drop\s+(schema|owned)|set\s+schema", re.IGNORECASE)

_NAME = r"(?:(?P<schema>\w+)\.)?(?P<{0}>\w+)"
_CREATED = {
    "table": re.compile(r"create\s+(?:unlogged\s+)?table\s+(?P<guard>if\s+not\s+exists\s+)?" + _NAME.format("table")),
    "index": re.compile(
        r"create\s+(?:unique\s+)?index\s+(?:concurrently\s+)?(?P<guard>if\s+not\s+exists\s+)?"
        r"(?P<name>\w+)\s+on\s+(?:only\s+)?" + _NAME.format("table")
    ),
    "column": re.compile(
        r"alter\s+table\s+(?:only\s+)?" + _NAME.format("table") + r"\s+add\s+column\s+"
        r"(?P<guard>if\s+not\s+exists\s+)?(?P<name>\w+)"
    ),
}

_PARENTHESES = re.compile(r"\([^()]*(?:\([^()]*\)[^()]*)*\)")

EVERYTHING = "*"

# Alembic's constructs that come to the same when they are executed twice: comments, defaults, NULL or NOT NULL.
_AS_OFTEN_AS_ONE_LIKES = {"ColumnNullable", "ColumnDefault", "ColumnComment", "SetTableComment", "SetColumnComment"}
_AS_OFTEN_AS_ONE_LIKES |= {"DropTableComment", "DropColumnComment"}


class UnknownFromHereError(BaseException):
    """A revision asks what only a database could answer. No Exception: a revision may catch those."""


class NoDatabase:
    """What `op.get_bind()` gives a revision: it knows the dialect, and nothing else."""

    def __init__(self, dialect: t.Any, recorder: Recorder) -> None:
        self.dialect = dialect
        self._recorder = recorder

    def __getattr__(self, name: str) -> t.Any:
        raise UnknownFromHereError("it uses the connection (%s)" % name)

    def in_transaction(self) -> bool:
        """Alembic itself asks, and would begin one."""
        return True

    def _run_ddl_visitor(self, _visitor: t.Any, element: t.Any, **options: t.Any) -> None:
        # Types (enumerations) are made so, beside their table; so are whole models, which are not known here.
        if not isinstance(element, TypeEngine):
            raise UnknownFromHereError("it creates or drops models")
        if not options.get("checkfirst"):
            self._recorder.more("TYPE %s" % getattr(element, "name", ""))


class Recorder:
    """Takes the statements of one revision where Alembic would execute them, and keeps what they make and remove.

    `others` is what it does besides, that is not to be done twice: `what` in words, and for rows that are added, `into`
    which table (schema, or None, and name).
    """

    def __init__(self) -> None:
        self.steps: list[Facts] = []
        self.others: list[Facts] = []

    def more(self, what: str, into: t.Any = None) -> None:
        """Note something else that is done."""
        self.others.append({"what": what.strip(), "into": into})

    def insert(self, table: t.Any, *_args: t.Any, **_options: t.Any) -> None:
        """Alembic's `impl.bulk_insert`."""
        place = getattr(table, "schema", None)
        self.more("INSERT into %s" % table.name, [str(place) if place else None, str(table.name)])

    def execute(self, construct: t.Any, *_args: t.Any, **_options: t.Any) -> None:
        """Alembic's `impl._exec`."""
        if isinstance(construct, str):
            self._text(construct)
        elif isinstance(construct, TextClause):
            self._text(construct.text)
        elif isinstance(construct, schema.DDL):
            self._text(str(construct.statement))
        else:
            for kind, take in self._takers().items():
                if isinstance(construct, kind):
                    take(construct)
                    return
            self._other(construct)

    def _other(self, construct: t.Any) -> None:
        name = type(construct).__name__
        if isinstance(construct, dml.Insert):
            self.insert(construct.table)
        elif name not in _AS_OFTEN_AS_ONE_LIKES:
            table = getattr(construct, "table_name", None) or getattr(getattr(construct, "table", None), "name", "")
            self.more("%s %s" % (name, table))

    def _takers(self) -> dict[t.Any, t.Callable[[t.Any], None]]:
        return {
            schema.CreateTable: lambda ddl: self._table("create", ddl, "if_not_exists"),
            schema.DropTable: lambda ddl: self._table("drop", ddl, "if_exists"),
            schema.CreateIndex: lambda ddl: self._part("create", "index", ddl, "if_not_exists"),
            schema.DropIndex: lambda ddl: self._part("drop", "index", ddl, "if_exists"),
            schema.AddConstraint: lambda ddl: self._part("create", "constraint", ddl, "if_not_exists"),
            schema.DropConstraint: lambda ddl: self._part("drop", "constraint", ddl, "if_exists"),
            alembic_ddl.AddColumn: lambda ddl: self._column("create", ddl, "if_not_exists"),
            alembic_ddl.DropColumn: lambda ddl: self._column("drop", ddl, "if_exists"),
            alembic_ddl.RenameTable: self._renamed_table,
            alembic_ddl.ColumnName: self._renamed_column,
        }

    def _text(self, text: str) -> None:
        removes = bool(_REMOVES.search(text))
        words = [EVERYTHING] if removes and _REMOVES_UNNAMED.search(text) else sorted(_words(text))
        self.steps.append({"do": "text", "removes": removes, "words": words})
        if removes or not self._created(text):
            # Not the statement itself: it may hold the application's data.
            verb = re.match(r"\s*([A-Za-z]+)", text)
            self.more("SQL (%s)" % (verb[1].upper() if verb else "…"))

    def _created(self, text: str) -> bool:
        """Note what the plainest statements make: one by itself, no name in it quoted. Returns whether that is all."""
        plain = text.strip().rstrip(";").lower()
        if '"' in plain or ";" in plain:
            return False
        for kind, form in _CREATED.items():
            found = form.match(plain)
            if found:
                named = found.groupdict()
                name = named.get("name") or named["table"]
                self._step("create", kind, named["schema"], named["table"], name, guarded=bool(named["guard"]))
                # ALTER TABLE may do something else besides, after a comma.
                return kind != "column" or "," not in _PARENTHESES.sub("", plain)
        return False

    def _step(self, do: str, kind: str, place: t.Any, table: t.Any, name: t.Any, **more: t.Any) -> None:
        # A name that is left to the server, or that it cuts off, is not compared.
        if isinstance(name, str) and len(name.encode()) <= 63:
            names = {"schema": str(place) if place else None, "table": str(table or ""), "name": str(name)}
            self.steps.append({"do": do, "kind": kind, **names, **more})
        else:
            self.more("%s of a %s whose name the server decides" % (do, kind))

    def _table(self, do: str, ddl: t.Any, guard: str) -> None:
        table = ddl.element
        if any("TEMP" in prefix.upper() for prefix in getattr(table, "_prefixes", ())):
            return
        self._step(do, "table", table.schema, table.name, table.name, guarded=bool(getattr(ddl, guard, False)))

    def _part(self, do: str, kind: str, ddl: t.Any, guard: str) -> None:
        part = ddl.element
        table = getattr(part, "table", None)
        place, name = getattr(table, "schema", None), getattr(table, "name", None)
        self._step(do, kind, place, name, part.name, guarded=bool(getattr(ddl, guard, False)))

    def _column(self, do: str, ddl: t.Any, guard: str) -> None:
        name = ddl.column.name
        self._step(do, "column", ddl.schema, ddl.table_name, name, guarded=bool(getattr(ddl, guard, False)))

    def _renamed_table(self, ddl: t.Any) -> None:
        self._step("rename", "table", ddl.schema, ddl.table_name, ddl.table_name, to=str(ddl.new_table_name))

    def _renamed_column(self, ddl: t.Any) -> None:
        self._step("rename", "column", ddl.schema, ddl.table_name, ddl.column_name, to=str(ddl.newname))


class Declarations:
    """What the revisions around the database's own declare.

    Made while `env.py` is connected, for the dialect and the search path; asked afterwards, when nothing is.
    """

    def __init__(self, context: t.Any) -> None:
        self._dialect = context.dialect
        self._metadata = context.opts.get("target_metadata")
        self._translated = bool(context.connection.get_execution_options().get("schema_translate_map"))
        path = context.connection.exec_driver_sql("select to_json(current_schemas(false))::text").scalar()
        self._search_path = json.loads(path)

    def collect(self, scripts: t.Sequence[t.Any], rows: t.Sequence[str]) -> Facts:
        """`search_path`, and the revisions that are `pending` and those `applied` last, each in order.

        A revision has `steps` (what it makes and removes, in order), `others` (what it does besides, see `Recorder`),
        and `unknown` (why there may be more, or None).

        :param scripts: Alembic's revisions, newest first.
        :param rows: the version rows.
        """
        by_id = {script.revision: script for script in scripts}
        found: Facts = {"search_path": self._search_path, "applied": [], "pending": []}
        if self._translated or not rows or not all(row in by_id for row in rows):
            return found
        applied = with_ancestors(by_id, rows)
        in_order = list(reversed(scripts))
        chosen = {
            "applied": [script for script in in_order if script.revision in applied][-_APPLIED:],
            "pending": [script for script in in_order if script.revision not in applied][:_PENDING],
        }
        until = time.monotonic() + _SECONDS
        with _no_engine_works():
            for part, revisions in chosen.items():
                found[part] = [self._declared(script, until) for script in revisions]
        _shorten([*found["applied"], *found["pending"]])
        return found

    def _declared(self, script: t.Any, until: float) -> Facts:
        recorder = Recorder()
        code, unknown = _code_of(script)
        # Code from elsewhere may remove whatever it likes.
        removes = unknown is not None
        if unknown is None and time.monotonic() > until:
            unknown = "there was no time left for it"
        if unknown is None:
            unknown = self._record(script.module, recorder)
        if unknown is not None:
            removes = removes or bool(_REMOVES.search(code))
            recorder.steps.append({"do": "text", "removes": removes, "words": [EVERYTHING] if removes else []})
        return {"revision": script.revision, "steps": recorder.steps, "others": recorder.others, "unknown": unknown}

    def _record(self, module: t.Any, recorder: Recorder) -> str | None:
        options = {"as_sql": True, "target_metadata": self._metadata, "output_buffer": io.StringIO()}
        context: t.Any = MigrationContext.configure(dialect=self._dialect, opts=options)
        context.connection = context.impl.connection = NoDatabase(self._dialect, recorder)
        context.impl._exec = recorder.execute
        context.impl.bulk_insert = recorder.insert
        context.autocommit_block = contextlib.nullcontext
        op: t.Any = Operations(context)
        op._install_proxy()
        try:
            module.upgrade()
        except UnknownFromHereError as reason:
            return str(reason)
        except (Exception, SystemExit) as error:  # whatever it lacks here, it may have there
            return "it cannot be followed without a database (%s)" % type(error).__name__
        finally:
            op._remove_proxy()
        return None


@contextlib.contextmanager
def _no_engine_works() -> t.Iterator[None]:
    """While revisions are recorded, no engine of the process connects, and none executes on a connection it has."""

    def refuse(*_args: t.Any) -> None:
        raise UnknownFromHereError("it opens a connection of its own")

    names = ("do_connect", "before_cursor_execute")
    for name in names:
        event.listen(Engine, name, refuse)
    try:
        yield
    finally:
        for name in names:
            event.remove(Engine, name, refuse)


def with_ancestors(by_id: t.Mapping[str, t.Any], rows: t.Iterable[str]) -> set[str]:
    """What version rows stand for, by Alembic's revisions; rows that the code does not know stand for nothing."""
    found: set[str] = set()
    waiting = list(rows)
    while waiting:
        name = waiting.pop()
        if name in found or name not in by_id:
            continue
        found.add(name)
        script = by_id[name]
        for parents in (script.down_revision, script._resolved_dependencies or script.dependencies):
            waiting.extend([parents] if isinstance(parents, str) else parents or ())
    return found


def _code_of(script: t.Any) -> tuple[str, str | None]:
    """The revision's source without its downgrade, and why it must not be called, if so."""
    try:
        with open(script.path, "rb") as file:
            source = file.read()
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError):
        return "", "its source cannot be read"
    functions = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == "downgrade")]
    # By lines: ast.get_source_segment() would split the source anew for each of them.
    lines = source.decode("utf-8", "replace").splitlines()
    code = "\n".join(line for node in functions for line in lines[node.lineno - 1 : node.end_lineno])
    if _DEPENDS_ON_MODE.search(code):
        return code, "it does one thing on a database and another without"
    for node in functions:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            other = _other_code(node, script.module)
            if other:
                return code, "it calls %s" % other
    return code, None


def _other_code(function: ast.AST, module: types.ModuleType) -> str | None:
    """What a function calls or imports that may do more than to declare, if anything."""
    for node in ast.walk(function):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or "."] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                if name.split(".")[0] not in _HARMLESS:
                    return name
        elif isinstance(node, ast.Call):
            path = _path(node.func)
            if path and not _is_harmless(path, module):
                return ".".join(path)
        elif isinstance(node, ast.Name) and _is_other_function(node.id, module):
            return node.id
    return None


def _is_other_function(name: str, module: types.ModuleType) -> bool:
    """Whether a name stands for another module's function, which may be given to somebody who calls it."""
    return isinstance(vars(module).get(name), types.FunctionType) and not _is_harmless([name], module)


def _path(node: ast.AST) -> list[str]:
    """`a.b.c` as a list; empty for what does not begin with a name."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        before = _path(node.value)
        return [*before, node.attr] if before else []
    return []


def _is_harmless(path: t.Sequence[str], module: types.ModuleType) -> bool:
    names = vars(module)
    if path[0] not in names:
        # A variable of the function, made of what else it calls; or a builtin.
        return path[0] not in _NOT_HARMLESS if hasattr(builtins, path[0]) else True
    thing = names[path[0]]
    for attribute in path[1:]:
        if not isinstance(thing, (types.ModuleType, type)) or _home(thing) in _HARMLESS:
            break
        thing = getattr(thing, attribute, None)
    if isinstance(thing, type) and issubclass(thing, (TypeEngine, enum.Enum)):
        return True
    return _home(thing) in _HARMLESS or getattr(thing, "__module__", None) == module.__name__


def _home(thing: t.Any) -> str:
    """The top-level package that a module, a function, a class or an object's class is from."""
    if isinstance(thing, types.ModuleType):
        return thing.__name__.split(".")[0]
    named = thing if isinstance(thing, (type, types.FunctionType, types.BuiltinFunctionType)) else type(thing)
    return (named.__module__ or "").split(".")[0]


def _words(text: str) -> set[str]:
    return {word for version in (text, text.lower()) for word in re.findall(r"\w+", version)}


def _shorten(revisions: t.Sequence[Facts]) -> None:
    """Of the words of statements, keep those that are names here: they may hold the application's data."""
    names = {EVERYTHING}
    for revision in revisions:
        for step in revision["steps"]:
            if step["do"] != "text":
                names.update((step["table"], step["name"], step.get("to") or ""))
    for revision in revisions:
        for step in revision["steps"]:
            if step["do"] == "text":
                step["words"] = [word for word in step["words"] if word in names]
