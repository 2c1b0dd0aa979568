"""The house rules: documentation equals code, roles describe themselves, sizes, and what is nowhere done."""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from tests.support.ansible_run import ROOT, run

MODULES = sorted(path.stem for path in (ROOT / "library").glob("*.py"))
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
MODULE_UTILS = sorted((ROOT / "module_utils" / "alembic_recovery").rglob("*.py"))
ON_TARGETS = [*MODULE_UTILS, *(ROOT / "library" / f"{name}.py" for name in MODULES)]
PYTHON = [
    path
    for folder in ("library", "module_utils", "action_plugins", "callback_plugins", "doc_fragments", "replica")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
PLAYS = [
    path
    for pattern in ("*.yml", "playbooks/*.yml", "roles/*/*/*.yml", "inventories/**/*.yml", "molecule/**/*.yml")
    for path in sorted(ROOT.glob(pattern))
]
DOCUMENTED_KEYS = ("type", "required", "default", "choices", "elements", "aliases")


def name_of(path: Path) -> str:
    """An id for a parametrised file."""
    return str(path.relative_to(ROOT))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# -- modules --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def documentation() -> dict[str, Any]:
    """What `ansible-doc` knows of each module, with the shared fragments in it."""
    done = run("ansible-doc", "-t", "module", "--json", *MODULES)
    assert done.code == 0, done.text
    found: dict[str, Any] = json.loads(done.out)
    return found


class Described(Exception):  # noqa: N818 (it is no error)
    """Raised in place of running a module, with what it says about its arguments."""

    def __init__(self, argument_spec: dict[str, Any], supports_check_mode: bool = False, **rules: Any) -> None:
        super().__init__()
        self.argument_spec = argument_spec
        self.supports_check_mode = supports_check_mode


def described(name: str, monkeypatch: pytest.MonkeyPatch) -> Described:
    """The arguments with which a module's main() asks Ansible for its parameters."""
    module = importlib.import_module(name)

    def refuse(**arguments: Any) -> None:
        raise Described(**arguments)

    monkeypatch.setattr(module, "AnsibleModule", refuse)
    with pytest.raises(Described) as raised:
        module.main()
    return raised.value


def from_code(spec: dict[str, Any]) -> dict[str, Any]:
    """An argument specification in the words of the documentation."""
    options = {}
    for name, option in spec.items():
        words = {key: option[key] for key in DOCUMENTED_KEYS if option.get(key) not in (None, False, [])}
        words.setdefault("type", "str")
        if "default" in option and option["default"] is not None:
            words["default"] = option["default"]
        if option.get("options"):
            words["suboptions"] = from_code(option["options"])
        options[name] = words
    return options


def from_documentation(documented: dict[str, Any]) -> dict[str, Any]:
    """The options of a documentation in the same form."""
    options = {}
    for name, option in documented.items():
        words = {key: option[key] for key in DOCUMENTED_KEYS if option.get(key) not in (None, False, [])}
        words.setdefault("type", "str")
        if "default" in option and option["default"] is not None:
            words["default"] = option["default"]
        if option.get("suboptions"):
            words["suboptions"] = from_documentation(option["suboptions"])
        options[name] = words
    return options


@pytest.mark.parametrize("name", MODULES)
def test_a_module_documents_exactly_its_arguments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    doc = documentation()[name]["doc"]

    assert from_documentation(doc.get("options", {})) == from_code(described(name, monkeypatch).argument_spec)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is(name: str) -> None:
    doc = documentation()[name]["doc"]

    assert doc["module"] == name
    assert doc["short_description"]
    assert not doc["short_description"].endswith(".")
    assert doc["version_added"]
    assert doc["author"]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_states_its_contract(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attributes = documentation()[name]["doc"]["attributes"]

    assert {"check_mode", "diff_mode", "idempotent"} <= set(attributes)
    for attribute in attributes.values():
        assert attribute["support"] in ("full", "partial", "none")
        assert attribute["description"]
    supported = described(name, monkeypatch).supports_check_mode
    assert supported == (attributes["check_mode"]["support"] != "none")


def options_used(task: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in (task[name] or {}).items() if value is not None}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_are_tasks_with_options_that_exist(name: str) -> None:
    tasks = yaml.safe_load(documentation()[name]["examples"])
    options = documentation()[name]["doc"].get("options", {})
    known = {alias for option in options.values() for alias in option.get("aliases", [])} | set(options)

    used = [task for task in tasks if name in task]
    assert used, f"no example uses {name}"
    for task in used:
        assert task["name"]
        given = options_used(task, name)
        assert set(given) <= known
        assert {key for key, option in options.items() if option.get("required")} <= set(given)


@pytest.mark.parametrize("name", MODULES)
def test_each_returned_value_is_documented_with_a_sample(name: str) -> None:
    returned = documentation()[name]["return"]

    assert returned
    for key, value in returned.items():
        for word in ("description", "returned", "type", "sample"):
            assert word in value, f"{key} has no {word}"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_has_a_test_file(name: str) -> None:
    assert list((ROOT / "tests").glob(f"*/test_{name}*.py")), f"tests/*/test_{name}.py is not there"


def test_ansible_doc_shows_all_modules() -> None:
    done = run("ansible-doc", "-t", "module", *MODULES)

    assert done.code == 0, done.text
    for name in MODULES:
        assert re.search(rf"^> MODULE {name}\b", done.out, re.MULTILINE), f"{name} is not shown"


def test_ansible_doc_shows_the_callback() -> None:
    done = run("ansible-doc", "-t", "callback", "run_report")

    assert done.code == 0, done.text
    assert "ALEMBIC_RECOVERY_REPORT" in done.out


def test_the_gate_and_its_documentation_have_the_same_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("gate", ROOT / "action_plugins" / "confirm.py")
    assert spec is not None
    assert spec.loader is not None
    gate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gate)

    assert described("confirm", monkeypatch).argument_spec == gate.ARGUMENT_SPEC


# -- roles ----------------------------------------------------------------------------------------------------


def specs(role: str) -> dict[str, Any]:
    """The entry points of a role with what they say of themselves."""
    found: dict[str, Any] = load(ROOT / "roles" / role / "meta" / "argument_specs.yml")["argument_specs"]
    return found


def walk_options(options: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each option of a specification with its dotted name, and those inside of it."""
    for name, option in options.items():
        yield path + name, option
        yield from walk_options(option.get("options", {}), f"{path}{name}.")


def test_ansible_doc_shows_all_roles() -> None:
    done = run("ansible-doc", "-t", "role", "-r", "roles", "--json", *ROLES)

    assert done.code == 0, done.text
    shown = json.loads(done.out)
    assert sorted(shown) == ROLES
    assert run("ansible-doc", "-t", "role", "-r", "roles", *ROLES).code == 0


def one_line(value: Any) -> Any:
    """A text without its line breaks: a long expression may be folded differently."""
    return " ".join(value.split()) if isinstance(value, str) else value


@pytest.mark.parametrize("role", ROLES)
def test_the_defaults_of_a_role_are_those_of_its_specification(role: str) -> None:
    options = specs(role)["main"].get("options", {})
    defaults = load(ROOT / "roles" / role / "defaults" / "main.yml") or {}

    assert set(defaults) == {name for name, option in options.items() if not option.get("required")}
    for name, value in defaults.items():
        assert one_line(value) == one_line(options[name].get("default")), (
            f"{name}: the specification says another default"
        )


@pytest.mark.parametrize("role", ROLES)
def test_all_inputs_of_a_role_are_typed_described_and_carry_its_name(role: str) -> None:
    for entry_point, spec in specs(role).items():
        assert spec["short_description"], entry_point
        for name in spec.get("options", {}):
            assert name.startswith(f"{role}_"), name
        for name, option in walk_options(spec.get("options", {})):
            assert option.get("type"), f"{entry_point}: {name} has no type"
            assert option.get("description"), f"{entry_point}: {name} has no description"
            if option["type"] == "list":
                assert option.get("elements"), f"{entry_point}: {name} does not say of what it is a list"
            if re.search(r"password|secret|environment$", name):
                assert option.get("no_log"), f"{entry_point}: {name} is shown"


@pytest.mark.parametrize("role", ROLES)
def test_each_entry_point_of_a_role_has_its_tasks(role: str) -> None:
    for entry_point in specs(role):
        assert (ROOT / "roles" / role / "tasks" / f"{entry_point}.yml").exists(), entry_point


def tasks_in(node: Any) -> Iterator[dict[str, Any]]:
    """All mappings in a document that may be tasks."""
    if isinstance(node, list):
        for item in node:
            yield from tasks_in(item)
    elif isinstance(node, dict):
        yield node
        for value in node.values():
            yield from tasks_in(value)


def test_what_is_used_of_a_role_is_an_entry_point() -> None:
    used = set()
    for path in PLAYS:
        for task in tasks_in(load(path)):
            for action in ("ansible.builtin.import_role", "ansible.builtin.include_role"):
                if isinstance(task.get(action), dict):
                    used.add((task[action]["name"], task[action].get("tasks_from", "main")))

    assert used, "no playbook uses a role"
    for role, entry_point in sorted(used):
        assert entry_point.removesuffix(".yml") in specs(role), f"{role} has no entry point {entry_point}"


@pytest.mark.parametrize("role", ROLES)
def test_the_readme_of_a_role_names_all_its_inputs(role: str) -> None:
    readme = (ROOT / "roles" / role / "README.md").read_text(encoding="utf-8")
    inputs = {name for spec in specs(role).values() for name in spec.get("options", {})}

    assert sorted(name for name in inputs if f"`{name}`" not in readme) == []
    named = set(re.findall(rf"`({role}_[a-z0-9_]+)`", readme))
    assert named - inputs - set(specs(role)) - set(ROLES) - set(MODULES) == set()


# -- what is nowhere done -------------------------------------------------------------------------------------


def calls(path: Path, name: str) -> list[int]:
    """The lines of a file in which something of this name is called."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == name:
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", [path for path in PYTHON if path.parent.name != "library"], ids=name_of)
def test_only_a_module_fails_a_task(path: Path) -> None:
    assert calls(path, "fail_json") == []
    assert calls(path, "exit_json") == []


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_no_shell_in_python(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    keywords = [node for node in ast.walk(tree) if isinstance(node, ast.keyword)]

    for keyword in keywords:
        assert keyword.arg != "use_unsafe_shell", f"line {keyword.value.lineno}"
        if keyword.arg == "shell":
            assert isinstance(keyword.value, ast.Constant), f"line {keyword.value.lineno}"
            assert keyword.value.value is False, f"line {keyword.value.lineno}"
    assert calls(path, "system") == []
    assert calls(path, "popen") == []


def test_an_engine_is_asked_for_its_containers_in_one_place() -> None:
    """Others remove theirs while we look; only that place allows for it."""
    asking = [
        str(path.relative_to(ROOT))
        for folder in ("replica", "tests", "tools")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "containers.list(" in path.read_text(encoding="utf-8")
    ]
    assert [path for path in asking if path != "tests/unit/test_meta.py"] == ["replica/engine.py"]


@pytest.mark.parametrize("path", PLAYS, ids=name_of)
def test_no_swallowed_error_and_no_shell_in_a_playbook(path: Path) -> None:
    for task in tasks_in(load(path)):
        forbidden = {"ignore_errors", "shell", "ansible.builtin.shell", "raw", "ansible.builtin.raw"}
        assert not forbidden & set(task), sorted(forbidden & set(task))
        assert task.get("ignore_unreachable") is not True


@pytest.mark.parametrize("path", ON_TARGETS, ids=name_of)
def test_what_runs_on_targets_is_python_3_8(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))

    only_a_docstring = len(tree.body) <= 1
    assert "from __future__ import annotations" in source or only_a_docstring
    annotations = {
        id(inner)
        for node in ast.walk(tree)
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if annotation is not None
        for inner in ast.walk(annotation)
    }
    for node in ast.walk(tree):
        if id(node) in annotations:
            continue
        if isinstance(node, ast.Attribute):
            newer = {"removeprefix", "removesuffix", "with_stem", "is_relative_to", "pairwise", "batched"}
            assert node.attr not in newer, f"line {node.lineno}: {node.attr}"
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            generic = node.value.id in ("dict", "list", "set", "tuple", "frozenset", "type")
            assert not generic, f"line {node.lineno}: {node.value.id}[…] is evaluated, and needs Python 3.9"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            types = {"str", "int", "float", "bool", "list", "dict", "tuple", "bytes", "None"}
            for side in (node.left, node.right):
                assert not isinstance(side, ast.Dict), f"line {node.lineno}: dict | dict needs Python 3.9"
                assert ast.unparse(side) not in types, f"line {node.lineno}: X | Y is evaluated"


# -- sizes ----------------------------------------------------------------------------------------------------


def code_lines(path: Path) -> int:
    """The lines of a module without its documentation."""
    source = path.read_text(encoding="utf-8")
    documented = 0
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("DOCUMENTATION", "EXAMPLES", "RETURN"):
            documented += (node.end_lineno or node.lineno) - node.lineno + 1
    return len(source.splitlines()) - documented


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_small(name: str) -> None:
    path = ROOT / "library" / f"{name}.py"
    functions = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    main = next(node for node in functions if node.name == "main")

    assert code_lines(path) <= 250
    assert (main.end_lineno or 0) - main.lineno + 1 <= 50


@pytest.mark.parametrize("path", MODULE_UTILS, ids=name_of)
def test_a_file_of_the_package_is_small(path: Path) -> None:
    # The agent is sent to the application's Python as one file.
    assert len(path.read_text(encoding="utf-8").splitlines()) <= (600 if path.name == "agent.py" else 420)


@pytest.mark.parametrize("role", ROLES)
def test_the_main_tasks_of_a_role_are_a_table_of_contents(role: str) -> None:
    assert len((ROOT / "roles" / role / "tasks" / "main.yml").read_text(encoding="utf-8").splitlines()) <= 45


# -- settings and requirements --------------------------------------------------------------------------------


def test_ansible_cfg_is_valid() -> None:
    done = run("ansible-config", "validate", "-t", "all")

    assert done.code == 0, done.text


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


@pytest.mark.parametrize("name", ["run.txt", "demo.txt", "make.txt"])
def test_requirements_are_pinned_as_the_lock_has_them(name: str) -> None:
    locked: dict[str, set[str]] = {}
    for line in requirements("constraints.txt"):
        locked.setdefault(line.name, set()).add(str(line.specifier))

    for line in requirements(name):
        assert str(line.specifier).startswith("=="), f"{line} is not pinned"
        normal = re.sub(r"[-_.]+", "-", line.name).lower()
        assert str(line.specifier) in locked[normal], f"{line} differs from the lock: run tools/lock"


def test_what_is_tested_is_what_the_project_says_it_needs() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {Requirement(line).name: Requirement(line).specifier for line in project["dependencies"]}

    pinned = requirements("run.txt")
    assert {line.name for line in pinned} == set(needed)
    for line in pinned:
        assert next(iter(line.specifier)).version in needed[line.name]
