"""What a revision's source says of its downgrade, and whether it still does the same."""

from __future__ import annotations

import textwrap

import pytest
from ansible.module_utils.alembic_recovery.agent_source import digest_of, downgrade_of


def of(body: str) -> str:
    """What is said of a downgrade with this body."""
    return downgrade_of(f"def upgrade():\n    op.one()\n\ndef downgrade():\n{textwrap.indent(body, '    ')}\n".encode())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param("pass", "empty", id="pass"),
        pytest.param('"""Nothing to do."""', "empty", id="a docstring"),
        pytest.param('"""Nothing."""\n...', "empty", id="an ellipsis"),
        pytest.param("return", "empty", id="return"),
        pytest.param("return None\nop.one()", "empty", id="nothing before a return"),
        pytest.param("import os\npass  # later", "empty", id="an import and a comment"),
        pytest.param("raise NotImplementedError", "raises", id="a class"),
        pytest.param('"""No."""\nraise NotImplementedError("no")', "raises", id="an instance after a docstring"),
        pytest.param("op.one()\nraise RuntimeError()", "raises", id="at the end"),
        pytest.param("assert False, 'no'", "raises", id="an assertion of nothing"),
        pytest.param("if x:\n    raise RuntimeError()", "present", id="under a condition"),
        pytest.param("if x:\n    return\nraise RuntimeError()", "present", id="not if it leaves before"),
        pytest.param("op.drop_table('x')", "present", id="a call"),
        pytest.param("conn = op.get_bind()\nconn.execute(x)", "present", id="an assignment first"),
        pytest.param("assert x", "present", id="an assertion of something"),
    ],
)
def test_bodies(body: str, expected: str) -> None:
    assert of(body) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("def upgrade(): pass", "raises", id="there is none"),
        pytest.param("class A:\n    def downgrade(self): op.x()\ndef upgrade(): pass", "raises", id="a method is none"),
        pytest.param("def downgrade(): op.x()\ndef downgrade(): pass", "empty", id="the last one counts"),
        pytest.param("downgrade = lambda: None", "present", id="assigned"),
        pytest.param("from helpers import none as downgrade", "present", id="imported"),
        pytest.param("from helpers import *", "present", id="perhaps imported"),
        pytest.param("if x:\n    def downgrade(): pass", "present", id="under a condition"),
        pytest.param("async def downgrade(): pass", "raises", id="Alembic runs no coroutine"),
        pytest.param("# -*- coding: latin-1 -*-\ndef downgrade(): 'gr\xfc\xdfe'", "empty", id="in another encoding"),
        pytest.param("\0", "present", id="no source at all"),
        pytest.param("def downgrade(:", "present", id="no Python"),
    ],
)
def test_sources(source: str, expected: str) -> None:
    assert downgrade_of(source.encode("latin-1")) == expected


REVISION = """
import sqlalchemy as sa
from alembic import op

revision = "b"
down_revision = "a"


def upgrade():
    op.create_table("t", sa.Column("n", sa.String(20)))
    op.execute(f"grant select on t to {'x':>3}")


def downgrade():
    op.drop_table("t")
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("import sqlalchemy as sa\n", "# about it\n\nimport sqlalchemy as sa\n", id="a comment"),
        pytest.param("\nimport", '\n"""A revision.\n\nCreate Date: 2025-10-18\n"""\nimport', id="a docstring"),
        pytest.param("def upgrade():\n", 'def upgrade():\n    """Make it."""\n', id="a docstring of upgrade"),
        pytest.param('"t", sa', '\n        "t",\n        sa', id="line breaks"),
        pytest.param('"n"', "'n'", id="quotes"),
        pytest.param('"n", sa.String(20)', '"n", sa.String(20),', id="a trailing comma"),
        pytest.param("def upgrade():", "def upgrade() -> None:", id="an annotation of a function"),
        pytest.param('revision = "b"', 'revision: str = "b"', id="an annotation of a variable"),
        pytest.param(
            "import sqlalchemy as sa\nfrom alembic import op\n",
            "from alembic import op\n\nimport sqlalchemy as sa\n",
            id="the order of imports",
        ),
        pytest.param('op.drop_table("t")', "raise NotImplementedError", id="the downgrade"),
    ],
)
def test_what_makes_no_other_revision(old: str, new: str) -> None:
    assert old in REVISION
    assert digest_of(REVISION.replace(old, new, 1).encode()) == digest_of(REVISION.encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("String(20)", "String(21)", id="a number"),
        pytest.param('"n"', '"m"', id="a text"),
        pytest.param("op.execute", "op.get_bind().execute", id="a call"),
        pytest.param("    op.execute", "    if sa:\n        op.execute", id="a condition"),
        pytest.param(":>3", ":>4", id="inside of a text"),
        pytest.param('down_revision = "a"', 'down_revision = "a"\nTABLE = "t"', id="a constant"),
        pytest.param("op.create_table", "op.create_tables", id="a name"),
    ],
)
def test_what_makes_another_revision(old: str, new: str) -> None:
    assert old in REVISION
    assert digest_of(REVISION.replace(old, new).encode()) != digest_of(REVISION.encode())


def test_the_digest_of_a_revision_is_the_same_in_each_version_of_python() -> None:
    """What is recorded is compared with what another Python, in another image, makes of the same file."""
    assert digest_of(REVISION.encode()) == "2e6546549f1a9b14b4bda38a0f6e1cf4c6f03e58afe485fb7089a7f6ed7b8aeb"


def test_a_source_that_cannot_be_parsed_has_none() -> None:
    assert digest_of(b"def upgrade(:") is None
    assert digest_of(b"sql = " + b" + ".join([b"'a'"] * 3000)) is None
