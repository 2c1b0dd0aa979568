"""What the documentation says is so: its commands are run, its stacks are accepted, its links lead somewhere.

The README is followed from top to bottom on the Docker replica, the part of the runbook for stacks without containers
on the host replica. A command that is not known here fails: somebody has to say how it is run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg.sql
import pytest
import yaml

from replica import seed
from replica.application import BROKEN, HEAD
from replica.docker import DockerReplica
from replica.host import HostReplica
from tests.support.ansible_run import ROOT, clean_environment, run, run_playbook
from tests.support.terminal import Terminal

README = ROOT / "README.md"
RUNBOOK = ROOT / "docs" / "runbook.md"
RUNBOOK_DE = ROOT / "docs" / "runbook.de.md"
ROLE_READMES = sorted((ROOT / "roles").glob("*/README.md"))
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")), *ROLE_READMES]

ON_CONTROLLER = ("ansible-playbook", "ansible-inventory")
ON_SERVER = ("docker", "tail", "cat")
NOT_RUN_HERE = ("make", ".")
SAMPLE_RUN = "20251021T031500Z-7f3a1c"
ASKS = "ansible-playbook recover.yml -l prod"
SMALL = seed.Size(songs=200, rules=200)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    section: str
    language: str
    text: str

    def commands(self) -> list[str]:
        """The first words of its commands; what is indented or in a here-document goes on with the line before."""
        found, until, quoted = [], "", False
        for line in self.text.splitlines():
            if until:
                until = "" if line == until else until
            elif quoted or line.startswith(" "):
                quoted ^= line.count("'") % 2 == 1
            elif line.strip():
                word = re.match(r"[A-Z]+=|\S+", line)
                assert word is not None
                found.append(word[0])
                here = re.search(r"<<'(\w+)'$", line)
                until = here[1] if here else ""
                quoted = not here and line.count("'") % 2 == 1
        return found

    def place(self) -> str:
        """Where it is typed: `controller`, `server`, or `` if it is not run here."""
        words = set(self.commands())
        for place, known in (("controller", ON_CONTROLLER), ("server", ON_SERVER), ("", NOT_RUN_HERE)):
            if words <= {*known, "grep"}:
                return place
        raise AssertionError(f"{self}: {sorted(words)}: say in test_readme.py how this is run")

    def __str__(self) -> str:
        return f"{self.page.name}, line {self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page in these languages (all, if none is given)."""
    found: list[Block] = []
    section, start, lines = "", 0, list[str]()
    language: str | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            if language is None:
                language, start, lines = line[3:].strip(), number, []
            else:
                found.append(Block(page, start, section, language, "\n".join(lines) + "\n"))
                language = None
        elif language is not None:
            lines.append(line)
        elif line.startswith("#"):
            section = line.lstrip("# ")
    assert language is None, f"{page}: the block of line {start} does not end"
    return [block for block in found if not languages or block.language in languages]


def commands(page: Path) -> list[Block]:
    return blocks(page, "sh", "console")


# -- what can be seen without running anything ------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is(page: Path) -> None:
    for block in blocks(page):
        assert block.language in ("sh", "yaml", "text", "json"), f"{block}: {block.language!r}"


@pytest.mark.parametrize("page", [README, RUNBOOK, RUNBOOK_DE], ids=lambda page: page.name)
def test_every_command_is_known(page: Path) -> None:
    assert [block.place() for block in commands(page)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made for a link."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name}: {target}"


def test_the_verdicts_are_those_of_the_code() -> None:
    code = (ROOT / "module_utils" / "alembic_recovery" / "verdict.py").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([A-Z_]+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)

    assert sorted(listed) == sorted(set(re.findall(r"Verdict\(\s*\"([A-Z_]+)\"", code)))
    decision = (ROOT / "docs" / "decisions" / "0009-the-verdict-is-a-pure-function.md").read_text(encoding="utf-8")
    order = re.search(r"The precedence, first that holds: ([A-Z_,\s]+)\.", code)
    assert order is not None
    assert " ".join(order[1].split()) in " ".join(decision.split())


@pytest.mark.parametrize("page", [README, RUNBOOK, RUNBOOK_DE], ids=lambda page: page.name)
def test_the_phases_are_those_of_the_play(page: Path) -> None:
    names = set(re.findall(r"- name: (.+)$", (ROOT / "recover.yml").read_text(encoding="utf-8"), re.MULTILINE))
    table = re.search(r"^\| (?:it stopped in|phase|Phase) \|.*?\n\n", page.read_text(encoding="utf-8"), re.M | re.S)

    assert table is not None
    for row in table[0].strip().splitlines()[2:]:
        for phase in row.split("|")[1].split(","):
            assert any(name.startswith(phase.strip()) for name in names), f"recover.yml has no phase {phase.strip()}"


def test_both_languages_have_the_same_steps() -> None:
    def headings(page: Path) -> list[str]:
        return re.findall(r"^## (\d+)\. ", page.read_text(encoding="utf-8"), re.MULTILINE)

    assert headings(RUNBOOK) == headings(RUNBOOK_DE) == [str(number) for number in range(1, len(headings(RUNBOOK)) + 1)]
    assert [block.text for block in blocks(RUNBOOK)] == [block.text for block in blocks(RUNBOOK_DE)]


@pytest.mark.parametrize("target", ["install", "demo", "test"])
def test_what_make_is_asked_for_is_there(target: str) -> None:
    assert f"make {target}\n" in "".join(block.text for block in commands(README))
    done = run("make", "--dry-run", target)

    assert done.code == 0, done.text
    assert "tools/venv" in done.out
    assert run("make", "help").out.count(f"\n  {target} ") == 1


def stacks() -> dict[str, dict[str, object]]:
    """All examples of a stack, and the one that is shipped, by where they are: the variables of a host."""
    found = {
        f"{block.page.parent.name}-{block.page.stem}-{block.line}": yaml.safe_load(block.text)
        for page in PAGES
        for block in blocks(page, "yaml")
        if "recovery_stack:" in block.text
    }
    shipped = ROOT / "inventories" / "group_vars" / "prod" / "stack.yml"
    return {**found, "shipped": yaml.safe_load(shipped.read_text(encoding="utf-8"))}


def test_every_stack_is_accepted(tmp_path: Path) -> None:
    hosts = {
        name: {
            "recovery_stack_name": "prod",
            "vault_aiproxy_password": "x",
            "vault_aiproxy_admin_password": "y",
            **variables,
        }
        for name, variables in stacks().items()
    }
    assert len(hosts) >= 4
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": local}}))
    play = tmp_path / "guard.yml"
    play.write_text("[{hosts: all, gather_facts: false, tasks: [{name: Guard, import_role: {name: guard}}]}]\n")

    done = run_playbook(play, "-i", inventory, "-l", "all", cwd=ROOT)

    assert done.code == 0, done.text
    assert done.out.count("failed=0") == len(hosts)


def test_every_play_is_one(tmp_path: Path) -> None:
    plays = [block for page in PAGES for block in blocks(page, "yaml") if "hosts:" in block.text]
    assert {block.page.parent.name for block in plays} == {page.parent.name for page in ROLE_READMES}
    play = tmp_path / "plays.yml"
    play.write_text("".join(block.text for block in plays))

    done = run_playbook(play, "--syntax-check", "-i", "localhost,", cwd=ROOT)

    assert done.code == 0, done.text


# -- followed for real ------------------------------------------------------------------------------------------------


class Reader:
    """Somebody who types what the pages say, on a machine that is both controller and server."""

    def __init__(self, home: Path, inventory: Path, replace: dict[str, str]) -> None:
        """`replace` has what is called otherwise here than on the page."""
        self.home = home
        self.replace = replace
        home.mkdir()
        self.environment = clean_environment(HOME=str(home), ANSIBLE_INVENTORY=str(inventory))

    def type(self, block: Block) -> str:
        """Run a block; return what was printed. A command that fails is a failed test."""
        place, text = block.place(), self.here(block.text)
        if place == "":
            return ""
        if text.strip() == ASKS:
            return self._answer(ASKS)
        # At a terminal, a command that fails is seen; here it ends the block.
        script = f"set -euo pipefail\n{text}"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=ROOT if place == "controller" else self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{block} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def here(self, text: str) -> str:
        """A text of the page as it is on this machine; the name of the run is the newest backup's."""
        made = sorted(self.home.glob("alembic-recovery/prod/backups/*.manifest.json"))
        run_id = made[-1].name.removeprefix("aiproxy_").removesuffix(".manifest.json") if made else SAMPLE_RUN
        for name, value in {**self.replace, SAMPLE_RUN: run_id}.items():
            text = text.replace(name, value)
        return text

    def _answer(self, command: str) -> str:
        """Run the command that asks, at a terminal, and type what it asks for."""
        with Terminal(shlex.split(command), ROOT, self.environment) as terminal:
            terminal.read_until("To go on, type aiproxy@prod", seconds=600)
            terminal.wait_for_question("To go on, type aiproxy@prod")
            terminal.type("aiproxy@prod\n")
            code = terminal.wait(seconds=600)
            assert code == 0, terminal.text
            return terminal.text


def assert_printed(reader: Reader, sample: Block, printed: str) -> None:
    """Each line of a sample is what was printed, up to where the sample leaves something out."""
    flat = " ".join(printed.split())
    for line in sample.text.splitlines():
        words = reader.here(line.strip().removeprefix("- '").removesuffix("'")).split("…")[0].split(", …")[0]
        words = " ".join(words.replace("~", str(reader.home)).split()).rstrip(" ,")
        assert words in flat, f"{sample}: {words!r} was not printed:\n{printed}"


@pytest.fixture
def docker_replica() -> Iterator[DockerReplica]:
    replica = DockerReplica(f"readme_{os.getpid()}")
    replica.down()
    try:
        yield replica.up(data=SMALL, port=0)
    finally:
        replica.down()


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_readme_from_top_to_bottom(docker_replica: DockerReplica, tmp_path: Path) -> None:
    replica = docker_replica
    here = {"mac_ki_service": replica.prefix, "https://production-server.example": replica.base_url}
    reader = Reader(tmp_path / "home", replica.inventory_file, here)
    typed = commands(README)
    back = [number for number, block in enumerate(typed) if block.section == "Go back"]
    samples = blocks(README, "text")

    look, check, asked, again, verified, recorded = [reader.type(block) for block in typed[: back[0]]]
    assert_printed(reader, samples[0], look)
    assert "check mode: nothing was changed" in check
    assert "ALTER TABLE songs ADD COLUMN sketch_id" in check
    assert_printed(reader, samples[1], asked)
    assert "nothing to do" in again
    assert "changed=0 " in again
    assert "RUN REPORT playbooks/verify.yml" in verified
    assert "Recorded already: " in recorded
    assert replica.query("select version_num from alembic_version") == HEAD
    assert replica.web.request("/api/v1/songs").status == 200

    ways, gone = [reader.type(typed[number]) for number in back]
    assert "- swap_back (proved): " in ways
    assert "check mode: nothing was changed" in ways
    assert f"Gone back: swap_back. aiproxy is at {BROKEN}." in gone
    assert replica.query("select version_num from alembic_version") == BROKEN
    kept = "select count(*) from pg_database where datname ~ '^aiproxy_replaced_' and not datallowconn"
    assert replica.query(kept) == "1"
    replica.web.wait("/api/v1/health", seconds=60)
    assert replica.web.request("/api/v1/songs").status == 500

    rest = {block.text: reader.type(block) for block in typed[back[-1] + 1 :]}
    assert any("|--production-server" in printed and "Verdict: BEHIND" in printed for printed in rest.values())
    assert any("Is here: " in printed and "The backup restores: " in printed for printed in rest.values())
    (looking,) = [block for block in commands(RUNBOOK) if block.commands() == ["docker"]]
    assert reader.type(looking).startswith("CONTAINER ID")
    # The Engine may be that of other stacks, too, whose runs are at work now.
    ours = {path.name for path in reader.home.glob(".local/state/alembic-recovery/prod/runs/*")}
    there = replica.client.api.containers(all=True, filters={"label": "alembic-recovery.run"})
    assert len(ours) >= 2
    assert not [found for found in there if found["Labels"]["alembic-recovery.run"] in ours], "left behind"


@pytest.fixture
def host_replica(tmp_path: Path) -> Iterator[HostReplica]:
    replica = HostReplica(tmp_path / "replica")
    try:
        yield replica.up(data=SMALL)
    finally:
        replica.down()


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_the_runbook_without_containers(host_replica: HostReplica, tmp_path: Path) -> None:
    replica = host_replica
    inventory = tmp_path / "inventory.yml"
    host = {**replica.inventory()["demo"]["hosts"]["demo-server"], "recovery_stack_name": "prod"}
    inventory.write_text(yaml.safe_dump({"prod": {"hosts": {"production-server": host}}}))
    reader = Reader(tmp_path / "home", inventory, {})
    # What is typed up to there is typed in the test above.
    typed = [block for block in commands(RUNBOOK) if block.section[0] in "567" and block.commands() != ["docker"]]

    reader.type(next(block for block in commands(README) if "recover.yml -l prod -e recovery_confirm" in block.text))
    assert replica.status()["version"] == HEAD
    journal, page, ways, kept = [reader.type(block) for block in typed]

    assert '"event": "proved", "revision": "d4641a241b98"' in journal
    assert "STAGE done since " in page
    assert "Nothing has to be done." in page
    assert "- swap_back (proved): " in ways
    assert "aiproxy_old_" in kept
    assert replica.status()["version"] == HEAD
    left = replica.postgres.execute(psycopg.sql.SQL("select datallowconn from pg_database where datname ~ '^aiproxy_'"))
    assert left == [(False,)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_on_a_fresh_checkout(tmp_path: Path) -> None:
    """What `make demo` runs, apart from a demo that may be kept running in this checkout."""
    left_out = shutil.ignore_patterns(".git", ".venv", ".cache", ".ansible", "__pycache__", "reports")
    checkout = shutil.copytree(ROOT, tmp_path / "checkout", ignore=left_out, symlinks=True)

    done = run(sys.executable, checkout / "tools" / "demo", cwd=checkout, timeout=800)

    assert done.code == 0, done.text
    shown = [
        "HTTP 500",
        "before: 0f864573b58a, after: 0f864573b58a",
        "HTTP 200",
        "changed=0 ",
    ]
    positions = [done.out.index(words) for words in shown]
    assert positions == sorted(positions)
    assert not (checkout / ".cache" / "demo").exists()
