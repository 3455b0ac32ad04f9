"""The import rule: arrows point downward only, and each library stays in its folders.

A module's place is its folder, or its own name if it stands at the top; all commands are one place,
`commands`. Imports inside functions and under `TYPE_CHECKING` count.
"""

from __future__ import annotations

import ast
import graphlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from conftest import TESTS

import study
from study.cli import COMMANDS

PACKAGE = Path(study.__file__).parent
# From the ground up: a place imports itself and those before it.
ORDER = """
    __init__ errors formatting system storage datasets
    config search_space task objective training records figures
    classification tasks search selection cluster inference
    reporting tracking runner export dry_run cli commands __main__
""".split()
LIBRARIES = {
    "ray": {"runner", "cluster"},
    "mlflow": {"tracking"},
    "matplotlib": {"figures"},
    "argparse": {"cli", "commands"},
}
FOLDER_SIZE, TOP_SIZE = 16, 10


def place_of(module: str) -> str:
    """Return the folder, or the name at the top, of `study.folder.module`."""
    name = (module.split(".") + ["__init__"])[1]
    return "commands" if name in COMMANDS else name


def parsed(root: Path) -> dict[str, ast.Module]:
    """Return the trees of all modules of a package, by dotted name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield what is imported anywhere, as `module` or `module.name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (f"{node.module}." if node.module else "")
            yield from (source + alias.name for alias in node.names)


def arrow_problems(trees: Mapping[str, ast.Module]) -> Iterator[str]:
    """Yield each arrow upward, and each library outside its folders."""
    for module, tree in trees.items():
        place = place_of(module)
        if place not in ORDER:
            yield f"{module} has no place in ORDER"
            continue
        for name in imported(tree):
            top = name.split(".")[0]
            if name.startswith("."):
                yield f"{module}: write the import of {name} in full"
            elif top in LIBRARIES and place not in LIBRARIES[top]:
                yield f"{module} imports {name}"
            elif top == "study" and (target := target_of(name, trees)) not in (None, module):
                there = place_of(str(target))
                if place == there == "commands" or there in ORDER[ORDER.index(place) + 1 :]:
                    yield f"{module} imports {name}, which is not below it"


def target_of(name: str, trees: Mapping[str, ast.Module]) -> str | None:
    """Return the module that an import leads to; None for a folder, which holds nothing itself."""
    found = name if name in trees else name.rpartition(".")[0]
    folder = any(other.startswith(f"{found}.") for other in trees)
    return found if found == "study" or (found in trees and not folder) else None


def circle_problems(trees: Mapping[str, ast.Module]) -> Iterator[str]:
    """Yield a circle of modules, if there is one."""
    graph = {}
    for module, tree in trees.items():
        reached = {target_of(name, trees) for name in imported(tree)}
        graph[module] = reached - {None, module, "study"}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield "a circle: " + " <- ".join(error.args[1])


def shape_problems(trees: Mapping[str, ast.Module]) -> Iterator[str]:
    """Yield folders that are too full, and folders whose `__init__` is more than a docstring."""
    folders = {module.rpartition(".")[0] for module in trees} - {""}
    for folder in folders - {"study"}:
        if folder not in trees or trees[folder].body[1:] or not ast.get_docstring(trees[folder]):
            yield f"{folder}/__init__.py holds a docstring and nothing else"
    modules = [module for module in trees if module not in folders | {"study", "study.__main__"}]
    sizes = Counter(module.rpartition(".")[0] for module in modules)
    sizes["study"] -= sum(place_of(module) == "commands" for module in modules)
    for folder, size in sizes.items():
        if size > (TOP_SIZE if folder == "study" else FOLDER_SIZE):
            yield f"{folder} has {size} modules"


def line_problems(root: Path) -> Iterator[str]:
    """Yield calls like `f(*(a, b), c)`, and what the formatter is told to skip."""
    for path in sorted(root.rglob("*.py")):
        text = path.read_text()
        if "# fmt" + ": " in text:
            yield f"{path.name} tells the formatter to skip something"
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        for call in calls:
            unpacked = [word.value for word in call.args if isinstance(word, ast.Starred)]
            if any(isinstance(value, ast.Tuple | ast.List) for value in unpacked):
                yield f"{path.name}:{call.lineno} unpacks a literal among arguments"


def problems(root: Path) -> list[str]:
    trees = parsed(root)
    checks = (arrow_problems(trees), circle_problems(trees), shape_problems(trees))
    return [problem for check in (*checks, line_problems(root)) for problem in check]


def test_the_package_keeps_the_rule() -> None:
    assert problems(PACKAGE) == []
    assert {place_of(name) for name in parsed(PACKAGE)} == set(ORDER), "what is in ORDER exists"
    assert list(line_problems(TESTS)) == []


GOOD = {
    "__init__.py": '"""A package."""',
    "errors.py": "class InputError(ValueError): pass",
    "storage/__init__.py": '"""A folder."""',
    "storage/files.py": "from study import errors",
    "storage/paths.py": "import study.storage.files",
    "runner/__init__.py": '"""Another."""',
    "runner/plan.py": "from study.storage.files import a",
    "runner/trial.py": "import ray, torch\nfrom study.runner import plan",
    "task.py": "import torch",
    "tune.py": "import argparse\nfrom study.runner.trial import a\nprint(1, *a)",
}
BAD = [
    ("storage/files.py", "import study.runner.plan", "files imports study.runner.plan, which"),
    ("storage/files.py", "def f():\n from study.runner import plan", "imports study.runner.plan,"),
    ("storage/files.py", "if TYPE_CHECKING: import study.task", "imports study.task, which"),
    ("storage/files.py", "from study.storage.paths import a", "a circle: study.storage."),
    ("storage/files.py", "from . import errors", "write the import of .errors in full"),
    ("storage/files.py", "def f(): import ray.tune", "study.storage.files imports ray.tune"),
    ("task.py", "if TYPE_CHECKING: from matplotlib.figure import Figure", "imports matplotlib."),
    ("runner/plan.py", "import argparse", "study.runner.plan imports argparse"),
    ("runner/plan.py", "import study.tune", "study.runner.plan imports study.tune, which"),
    ("best.py", "from study.tune import main", "study.best imports study.tune.main, which"),
    ("other/box.py", "", "study.other.box has no place in ORDER"),
    ("runner/__init__.py", "from study import errors", "runner/__init__.py holds a docstring"),
    ("runner/plan.py", "f(*(a, b), c)", "plan.py:1 unpacks a literal"),
    ("runner/plan.py", "a = 1  # fmt" + ": skip", "plan.py tells the formatter"),
]


def written(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / "study" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root / "study"


def test_a_package_that_keeps_the_rule_has_no_problem(tmp_path: Path) -> None:
    assert problems(written(tmp_path, GOOD)) == []


@pytest.mark.parametrize("name, text, problem", BAD, ids=[text or name for name, text, _ in BAD])
def test_what_breaks_the_rule_is_named(name: str, text: str, problem: str, tmp_path: Path) -> None:
    found = problems(written(tmp_path, {**GOOD, name: text}))
    assert any(problem in line for line in found), found


def test_what_is_too_full_is_named(tmp_path: Path) -> None:
    full = {f"runner/m{number}.py": "" for number in range(FOLDER_SIZE - 2)}
    assert problems(written(tmp_path, GOOD | full)) == []
    assert problems(written(tmp_path, {"runner/last.py": ""})) == ["study.runner has 17 modules"]
    top = {f"{name}.py": "" for name in ORDER if name not in ("runner", "storage", "commands")}
    found = problems(written(tmp_path / "top", GOOD | dict(list(top.items())[1:12])))
    assert any("study has 11 modules" in line for line in found), found
