"""The arrows of the design: which room may import which, and who may import Prefect, Ray and boto3."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKING = ("sources", "dedup", "filters", "tokens", "training", "evaluation")
ROOMS = {
    "contract": {"contract"},
    "store": {"store", "contract"},
    "models": {"models", "contract"},
    **{room: {room, "models", "store", "contract"} for room in WORKING},
    "tasks": {"tasks", *WORKING, "models", "store", "contract"},
    **{face: {"bessemer", "flows", "tasks", *WORKING, "models", "store", "contract"} for face in ("bessemer", "flows")},
}
PURE = ("dedup", "filters", "tokens", "models")
ONLY = {
    "prefect": lambda path: path.parts[0] == "flows" or str(path) in ("tasks/prefect_runner.py", "bessemer/services.py"),
    "ray": lambda path: str(path) in ("tasks/parts.py", "tasks/launch_ray.py"),
    "boto3": lambda path: path.parts[0] == "store",
}
BARE = (
    "training/loop.py",
    "training/engine_plain.py",
    "training/loader.py",
    "training/optimizers.py",
    "training/schedules.py",
    "training/guard.py",
)


def modules() -> list[Path]:
    return [path.relative_to(ROOT) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path, at_load_only: bool = False) -> set[str]:
    """Every module that the file imports, anywhere in it, or only while it is loaded."""
    found = set()
    tree = ast.parse((ROOT / path).read_text())
    for node in tree.body if at_load_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", modules(), ids=str)
def test_arrows_run_downwards_only(path: Path):
    ours = {name.split(".")[0] for name in imports(path)} & set(ROOMS)
    assert ours <= ROOMS[path.parts[0]], f"{path} imports {sorted(ours - ROOMS[path.parts[0]])}"


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
