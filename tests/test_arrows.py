"""The house of docs/architecture.md: which room may import which, who may import Prefect, Ray and boto3, and what a file may be called."""

import ast
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GROUND = {"models", "store", "contract"}
WORKING = ("sources", "dedup", "filters", "tokens", "training", "evaluation")
ENGINE = {*WORKING, *GROUND}
TASKS = {"engine", *ENGINE}
MAY_IMPORT = {
    "contract": set[str](),
    "store": {"contract"},
    "models": {"contract"},
    **dict.fromkeys(WORKING, GROUND),
    "engine": ENGINE,
    "tasks": TASKS,
    "bessemer": {"tasks", "services", *TASKS},
    "flows": {"bessemer", "tasks", "services", *TASKS},
    "services": {"contract"},
    "infra": {"services", "contract"},
    "deployments": {"services", "contract"},
}
"""What a room may import besides itself. Nobody imports `flows`, `infra` or `deployments`."""
OUTSIDE = {"tests", "benchmarks"}
"""Folders of code that no room imports."""
PURE = ("dedup", "filters", "tokens", "models")
ONLY = {
    "prefect": lambda path: path.parts[0] == "flows" or str(path) == "engine/prefect_runner.py",
    "ray": lambda path: str(path) in ("engine/parts.py", "engine/ranks_on_ray.py"),
    "boto3": lambda path: path.parts[:2] == ("infra", "machines") or path.parts[0] == "store",
}
BARE = (
    "training/loop.py",
    "training/engine_plain.py",
    "training/loader.py",
    "training/optimizers.py",
    "training/schedules.py",
    "training/guard.py",
)
BESIDE_STAGES = {
    "curated": "documents with their decisions, as text",
    "scoring": "what the score stages share",
    "gating": "what the gates share",
    "training_stages": "what the training stages share",
    "export_check": "the exported folder held against the model",
    "model_card": "the exported folder's README",
    "ppo_child": "the program of a PPO rank",
}
"""The files of tasks/ that declare no stage."""
SAME_KIND = {
    "__init__.py": "a package",
    "__main__.py": "what `python -m ROOM` runs",
    "config.py": "the settings of its room",
    "child.py": "the program that runs in a child process of its room",
    "conftest.py": "the fixtures of its folder",
    **{f"{name}.py": "a flow and a stage: people type both names" for name in ("pretrain", "evaluate", "export")},
}
"""Names that several files may have."""


def modules() -> list[Path]:
    found = [path.relative_to(ROOT) for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]
    return [path for path in found if path.parts[:2] != ("infra", "terraform")]


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


NAMES = {module_of(path) for path in modules()}


def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def imports(path: Path, at_load_only: bool = False) -> set[str]:
    """Every module that the file imports, anywhere in it, or only while it is loaded; and every module of ours that a string names."""
    found = set()
    for node in outside_functions(parsed(path)) if at_load_only else ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *({f"{node.module}.{alias.name}" for alias in node.names} & NAMES)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            found |= {node.value.partition(":")[0]} & NAMES  # what `python -m` is given, and module:OBJECT
        elif isinstance(node, ast.List | ast.Tuple):
            words = [each.value if isinstance(each, ast.Constant) else None for each in node.elts]
            found |= {str(module) for flag, module in pairwise(words) if flag == "-m"} & NAMES
    return found


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """What runs while a module is loaded."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from outside_functions(child)


@pytest.mark.parametrize("path", modules(), ids=str)
def test_arrows_run_downwards_only(path: Path):
    room = path.parts[0]
    ours = {name.split(".")[0] for name in imports(path)} & {*MAY_IMPORT, *OUTSIDE} - {room}
    assert ours <= MAY_IMPORT[room], f"{path} imports {sorted(ours - MAY_IMPORT[room])}"


def test_no_file_imports_itself_through_others():
    arrows = {module_of(path): imports(path) & NAMES - {module_of(path)} for path in modules()}
    while leaves := [name for name, targets in arrows.items() if not targets & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert not arrows, f"a circle is among {sorted(arrows)}"


@pytest.mark.parametrize("path", [path for path in modules() if str(path) != "contract/plug_ins.py"], ids=str)
def test_no_import_by_a_string_hides_an_arrow(path: Path):
    """Nor a relative one. Plug-ins are the user's own, and no arrow of ours."""
    nodes = list(ast.walk(parsed(path)))
    names = {node.id for node in nodes if isinstance(node, ast.Name)} | {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert not {"import_module", "__import__", "resolve_name"} & names
    assert not {"exec", "eval"} & {node.id for node in nodes if isinstance(node, ast.Name)}
    importers = [name for name in imports(path) if name.split(".")[0] in ("importlib", "pkgutil", "runpy")]
    assert set(importers) <= {"importlib.metadata", "importlib.resources"}
    assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


def test_every_folder_of_code_is_a_room():
    folders = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/*.py") if not path.relative_to(ROOT).parts[0].startswith(".")}
    assert folders - {"runs", "build"} == MAY_IMPORT.keys() | OUTSIDE


@pytest.mark.parametrize("path", modules(), ids=str)
def test_prefect_ray_and_boto3_stay_in_their_places(path: Path):
    names = {name.split(".")[0] for name in imports(path)}
    assert not [library for library, allowed in ONLY.items() if library in names and not allowed(path)]
    if path.parts[0] in PURE:
        assert "store" not in names, f"{path}: {path.parts[0]} knows no storage"


@pytest.mark.parametrize("name", BARE)
def test_the_training_loop_needs_torch_and_numpy_alone(name: str):
    """Transitively over our own modules: no pydantic, no pyarrow, no storage on a bare GPU box."""
    seen, waiting = set(), [Path(name)]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for module in imports(path, at_load_only=True):
            top = module.split(".")[0]
            assert top not in ("pydantic", "pyarrow", "boto3", "prefect", "ray", "store"), f"{name} reaches {module} through {path}"
            own = Path(*module.split(".")).with_suffix(".py")
            if (ROOT / own).exists():
                waiting.append(own)


def declared(path: Path) -> list[str]:
    """Top-level functions of the file under `@stage(…)`, and a question mark for each call of `stage` that is elsewhere."""
    tree = parsed(path)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and name_of(node.func) == "stage"]
    functions = {id(each): node.name for node in tree.body if isinstance(node, ast.FunctionDef) for each in node.decorator_list}
    return [functions.get(id(call), "?") for call in calls]


def name_of(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


@pytest.mark.parametrize("path", [path for path in modules() if path.parts[0] == "tasks" and path.stem != "__init__"], ids=str)
def test_a_file_of_tasks_declares_the_stage_of_its_name_or_is_named_here(path: Path):
    assert declared(path) == ([] if path.stem in BESIDE_STAGES else [path.stem])


def test_what_is_no_stage_is_in_tasks():
    assert {name for name in BESIDE_STAGES if not (ROOT / "tasks" / f"{name}.py").exists()} == set()


def test_no_two_files_have_one_name():
    tests = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py")]
    counts = Counter(path.name for path in [*modules(), *tests])
    assert {name for name, count in counts.items() if count > 1} <= SAME_KIND.keys()
