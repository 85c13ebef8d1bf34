"""Rules of the house that no other test would notice being broken."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import vsc_pyro as vsc

ROOT = Path(__file__).parent.parent
# Rooms: one may import from those before it.
ROOMS = [
    *("_pyro_internals", "_arguments", "_files", "_seeding", "_recorded", "_scalars", "_devices"),
    *("gates", "datasets", "distributions", "models", "objectives", "training", "acceleration", "inference"),
    *("evaluation", "sae", "arviz_bridge", "plots", "pages", "estimators"),
]
# A run takes its steps by what is built on `training`, and says what `evaluation` finds.
UPWARDS = {("training.fit", "acceleration"), ("training.loop", "acceleration")}
UPWARDS |= {("training.summary", "evaluation"), ("training.validation", "evaluation")}
# Files that are tested with what uses them.
INTERNAL = {"batch_checks", "contexts", "devices", "fit", "layout", "loop", "losses"}
INTERNAL |= {"model_card", "modes", "plan", "run", "summary", "variables", "vsc"}


def modules():
    """The path of every module, by its name without the package's."""
    package = ROOT / "vsc_pyro"
    found = {path.relative_to(package).with_suffix("").parts: path for path in package.rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path for parts, path in found.items() if parts != ("__init__",)}


def imports(path):
    """What a module imports when it is imported, by the same names: modules, or names in them."""
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "vsc_pyro":
            inner = node.module.partition(".")[2]
            yield from (f"{inner}.{alias.name}".removeprefix(".") for alias in node.names)
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("vsc_pyro") for alias in node.names), f"{path}: from vsc_pyro import"


def test_imports_run_one_way():
    level = {name: depth for depth, name in enumerate(ROOMS)}
    assert {name.partition(".")[0] for name in modules()} == level.keys()
    for name, path in modules().items():
        room = name.partition(".")[0]
        for module in imports(path):
            other = module.partition(".")[0]
            assert level[other] <= level[room] or (name, other) in UPWARDS, f"{name} imports {module}"


def test_no_modules_import_one_another():
    known, graph = modules(), {}
    for name, path in known.items():
        found = (module if module in known else module.rpartition(".")[0] for module in imports(path))
        graph[name] = {module for module in found if module in known and module != name}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises where there is a circle


def test_every_module_has_its_tests():
    rooms = {"models", "training", "inference", "evaluation", "arviz_bridge"}
    single = {name.lstrip("_") for name in ROOMS} - {
        "acceleration",
        "arviz_bridge",
        "evaluation",
        "inference",
        "models",
    }
    parts = {name.split(".")[1] for name in modules() if name.partition(".")[0] in rooms and "." in name}
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert single | (parts - INTERNAL) <= tested


def test_import_is_light():
    heavy = "arviz", "torchvision", "matplotlib", "sklearn"
    program = f"import sys, vsc_pyro; print([m for m in {heavy!r} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_public_names_are_there_and_documented():
    for name in vsc.__all__:
        assert getattr(vsc, name).__doc__
