"""Rules of the house that no other test would notice being broken."""

import ast
import subprocess
import sys
from pathlib import Path

import vsc_pyro as vsc

ROOT = Path(__file__).parent.parent
# Imports run one way, from left to right; a module may import only from groups before its own.
LAYERS = [
    {
        "_pyro_internals",
        "arguments",
        "arviz_versions",
        "files",
        "glossary",
        "modes",
        "optimizers",
        "parallel",
        "registration",
        "seeding",
        "starting",
    },
    {"history"},
    {"gates", "networks", "checkpoints", "datasets", "precision", "schedules"},
    {"data_checks", "distributions"},
    {"encoders", "decoders", "priors", "information"},
    {"imputation"},
    {"vae"},
    {"objectives", "exact", "survey"},
    {"svi", "gibbs", "advice", "figures"},
    {"batches", "compiled"},
    {"importance"},
    {"relaxation", "sparse_codes"},
    {"training", "evaluation", "probes", "refinement"},
    {"calibration", "ensembles", "posterior"},
    {"criticism"},
    {"plots"},
    {"pages"},
]


def modules():
    """The files of every module: one, or a folder of them."""
    found = {path.stem: [path] for path in (ROOT / "vsc_pyro").glob("*.py") if path.stem != "__init__"}
    return found | {
        path.parent.name: list(path.parent.glob("*.py")) for path in (ROOT / "vsc_pyro").glob("*/__init__.py")
    }


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_run_one_way():
    level = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}
    assert modules().keys() == level.keys()
    for name, files in modules().items():
        for module in (module for file in files for module in imports(file)):
            other = module.split(".")[1] if module.startswith("vsc_pyro.") else name
            assert other == name or level[other] < level[name], f"{name} imports {module}"
            assert module != "vsc_pyro"


def test_every_module_has_its_tests():
    names = {name.lstrip("_") for name in modules()}
    assert names <= {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}


def test_import_is_light():
    heavy = "arviz", "torchvision", "matplotlib", "sklearn"
    program = f"import sys, vsc_pyro; print([m for m in {heavy!r} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_public_names_are_there_and_documented():
    for name in vsc.__all__:
        assert getattr(vsc, name).__doc__
