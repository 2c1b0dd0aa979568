"""A part of the agent: what a revision's source says of its downgrade, and whether it is what it was.

Nothing of it is run.

Like `agent.py`, it runs in the application's own Python: the standard library and Python 3.8.
"""

from __future__ import annotations

import ast
import hashlib
import typing as t

PRESENT, EMPTY, RAISES = "present", "empty", "raises"

_NOTHING = (ast.Pass, ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal)


# What a syntax tree has besides in some versions of Python, or what does not change what an upgrade does.
_NOT_MEANING = {"ctx", "kind", "type_comment", "type_ignores", "type_params", "annotation", "returns"}


def digest_of(source: bytes) -> str | None:
    """A SHA-256 of what a revision does on its way up; ``None`` where its source cannot be read.

    Of the syntax tree, written in a form that is the same in each version of Python: whitespace, comments, docstrings,
    quotes, annotations, and the order of imports do not count, for a formatter changes them. The downgrade does not
    count either: it has not been applied.
    """
    try:
        return _digest(ast.parse(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a sum of a thousand terms, for one, is that deep
        return None


def _digest(module: ast.Module) -> str:
    statements = [node for node in module.body if not (isinstance(node, ast.FunctionDef) and node.name == "downgrade")]
    imports = [node for node in statements if isinstance(node, (ast.Import, ast.ImportFrom))]
    rest = [node for node in statements if not isinstance(node, (ast.Import, ast.ImportFrom))]
    lines = [*sorted(map(_written, imports)), *map(_written, _without_texts(rest))]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "backslashreplace")).hexdigest()


def _written(node: t.Any) -> str:
    """A part of a syntax tree as text; like `ast.dump()`, whose form changes from one version to the next."""
    if isinstance(node, list):
        return "[%s]" % ",".join(map(_written, _without_texts(node)))
    if not isinstance(node, ast.AST):
        return repr(node)
    if type(node).__name__ == "Index":  # around a subscript, in Python 3.8
        return _written(node.value)  # type: ignore[attr-defined]
    name = "Assign" if isinstance(node, ast.AnnAssign) else type(node).__name__
    facts = {key: value for key, value in ast.iter_fields(node) if key not in _NOT_MEANING}
    if isinstance(node, ast.AnnAssign):
        facts = {"targets": [node.target], "value": node.value}
    return "%s(%s)" % (name, ",".join("%s=%s" % (key, _written(facts[key])) for key in sorted(facts)))


def _without_texts(nodes: t.Sequence[t.Any]) -> list[t.Any]:
    """Without statements that only are a text: docstrings."""
    return [
        node
        for node in nodes
        if not (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
    ]


def downgrade_of(source: bytes) -> str:
    """What `downgrade()` of a revision is: present, empty (it does nothing), or raises (whatever the database is like).

    None at all is "raises", for Alembic fails on it. What cannot be told is "present": running it will tell.
    """
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError):  # compiled, without a source
        return PRESENT
    found: ast.AST | None = None
    for node in module.body:
        if _binds_it(node):
            found = node
    if found is None:
        return RAISES
    return _kind(found.body) if isinstance(found, ast.FunctionDef) else PRESENT


def _binds_it(node: ast.stmt) -> bool:
    """Whether a statement of the module gives the name a meaning, or may do so."""
    if isinstance(node, ast.FunctionDef):
        return node.name == "downgrade"
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef) and inner.name == "downgrade":
            return not isinstance(node, ast.ClassDef)
        if isinstance(inner, ast.Name) and inner.id == "downgrade" and isinstance(inner.ctx, ast.Store):
            return True
        if isinstance(inner, ast.alias) and (inner.asname or inner.name) in ("downgrade", "*"):
            return True
    return False


def _kind(body: t.Sequence[ast.stmt]) -> str:
    for number, node in enumerate(body):
        if _does_nothing(node):
            continue
        if isinstance(node, ast.Return) and (node.value is None or isinstance(node.value, ast.Constant)):
            return EMPTY
        rest = body[number:]
        return RAISES if _always_raises(rest) else PRESENT
    return EMPTY


def _does_nothing(node: ast.stmt) -> bool:
    return isinstance(node, _NOTHING) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _always_raises(body: t.Sequence[ast.stmt]) -> bool:
    """Whether a statement of the body itself raises, and none before it can leave the function."""
    for node in body:
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Constant) and not node.test.value:
            return True
        if any(isinstance(inner, ast.Return) for inner in ast.walk(node)):
            return False
    return False
