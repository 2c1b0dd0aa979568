"""tools/measure: its table, and how it gets into the page. The measuring itself is done by `make performance`."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.ansible_run import ROOT


@pytest.fixture
def measure() -> Iterator[ModuleType]:
    loader = importlib.machinery.SourceFileLoader("measure", str(ROOT / "tools" / "measure"))
    spec = importlib.util.spec_from_loader("measure", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["measure"] = module  # dataclasses look there
    loader.exec_module(module)
    yield module
    del sys.modules["measure"]


@pytest.fixture
def page(measure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    page = tmp_path / "performance.md"
    monkeypatch.setattr(measure, "PAGE", page)
    return page


@pytest.mark.parametrize(("count", "shown"), [(259_981, "260 kB"), (8_300_000, "8.3 MB"), (1_050_000_000, "1050 MB")])
def test_sizes(measure: ModuleType, count: float, shown: str) -> None:
    assert measure.megabytes(count) == shown


def test_of_two_ways_to_do_one_step_only_the_first_counts(measure: ModuleType) -> None:
    assert measure.Typed({"1. dump": 2.0, "3. all at once": 3.0, "3. or one by one": 5.0}).total() == 5.0


def test_the_rows_have_a_cell_for_each_size(measure: ModuleType) -> None:
    left = measure.Left("d4641a241b98", table=True, column=True, songs=200)
    as_it_was = measure.Left("0f864573b58a", table=False, column=False, songs=500)
    typed = measure.Typed(
        {"1. dump": 2.0, "3. `alembic upgrade head`": 3.1}, as_it_was, 3_000_000, dump_cr=True, dump_mode=0o644
    )
    run = measure.Play(12.34, {"Look": 5.0, "Migrate": 1.0}, modules=15, logic=27, changed=4, megabytes=60.4,
                       database_out=1.5, application_out=9.0)  # fmt: skip
    found = dict(measure.rows([measure.Measured(8_300_000, typed, run, left, run, run, run, run, 4.2, 250_000)] * 2))

    assert {len(cells) for cells in found.values()} == {2}
    assert found["**`recover.yml`**"][0] == "**12.3 s**"
    assert found["  Look"][0] == "5.0 s"
    assert found["  Restart"][0] == "-"
    assert found["tasks (modules + logic)"][0] == "15 + 27"
    assert found["  **outage, as a client of the database saw it**"][0] == "**1.5 s**"
    assert found["what it leaves"][0] == "version d4641a241b98, table there, column there, song list 200"
    assert found["their dump"][0] == "3.0 MB, mode 0644, with CR LF"
    assert found["what they leave"][0] == "version 0f864573b58a, table missing, column missing, song list 500"


def test_only_what_is_between_the_markers_is_replaced(measure: ModuleType, page: Path) -> None:
    page.write_text(f"before\n{measure.BEGIN}\nold\n{measure.END}\nafter\n")

    measure.write("new")
    measure.write("newer")

    assert page.read_text() == f"before\n{measure.BEGIN}\n\nnewer\n\n{measure.END}\nafter\n"


def test_a_page_without_markers_is_left_alone(measure: ModuleType, page: Path) -> None:
    page.write_text("nothing to replace\n")

    with pytest.raises(measure.MeasureError, match="has no markers"):
        measure.write("new")
    assert page.read_text() == "nothing to replace\n"


def test_the_page_has_the_markers(measure: ModuleType) -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")

    assert text.count(measure.BEGIN) == text.count(measure.END) == 1
