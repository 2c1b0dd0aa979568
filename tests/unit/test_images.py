"""Which images are looked into for the code that a database is ahead of, and what a revision's file is."""

from __future__ import annotations

import pytest
from ansible.module_utils.alembic_recovery.images import Image, declares, in_order

OWN = Image("sha256:own", "shop")
NEWER, OLDER = Image("sha256:newer", "shop", "2"), Image("sha256:older", "shop", "1")
WORKER, OTHER, DANGLING = Image("sha256:worker", "worker", "1"), Image("sha256:other", "other", "1"), Image("sha256:d")


def test_the_same_repository_comes_first_then_the_same_project() -> None:
    images = [DANGLING, OTHER, WORKER, NEWER, Image("sha256:own", "shop", "latest"), OLDER]
    assert in_order(images, OWN, {WORKER.image_id}) == [NEWER, OLDER, WORKER, DANGLING, OTHER]


def test_an_image_of_many_names_is_looked_into_once_under_the_likeliest() -> None:
    assert in_order([Image("sha256:newer", "copy", "x"), NEWER], OWN, set()) == [NEWER]


def test_their_number_is_bounded() -> None:
    assert len(in_order([Image(f"sha256:{number}") for number in range(100)], OWN, set())) == 12


def test_an_image_without_a_name_goes_by_its_id() -> None:
    assert (NEWER.name, DANGLING.name, Image("sha256:x", "shop").name) == ("shop:2", "sha256:d", "sha256:x")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("revision = 'a1'\n", True),
        ('down_revision = None\nrevision="a1"\n', True),
        ('revision: str = "a1"\n', True),
        ("down_revision = 'a1'\n", False),
        ("revision = 'a12'\n", False),
        ("# revision = 'a1'\n", False),
        ('"""Revision ID: a1"""\n', False),
        ("revision = 'a1\"\n", False),
    ],
)
def test_a_file_declares_a_revision(source: str, expected: bool) -> None:
    assert declares(source, "a1") is expected
