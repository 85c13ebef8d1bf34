"""The documents: their links lead somewhere, their reference is complete, and they name no machine."""

import importlib
import json
import re
from pathlib import Path

import pytest

import vsc_pyro as vsc

ROOT = Path(__file__).parent.parent
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")} - {*ROOT.glob("docs/_build/**/*.md")})
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
REFERENCE = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.rst"))

# What a reader of README.md may want to see in the code.
WALK = {
    "the KL divergence": ("vsc_pyro/distributions/divergences.py", "@register_kl"),
    "a gate": ("vsc_pyro/gates.py", "class BinaryConcrete"),
    "the epoch loop": ("vsc_pyro/training/run.py", "def epoch("),
    "the IWAE bound": ("vsc_pyro/evaluation/importance.py", "logsumexp"),
}


def links(page):
    return [(page.parent / target).resolve() for target in LINK.findall(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    assert [str(target) for target in links(page) if not target.is_file()] == []


@pytest.mark.parametrize(("file", "text"), WALK.values(), ids=WALK)
def test_three_clicks_lead_from_the_readme_to_the_code(file, text):
    assert text in (ROOT / file).read_text()
    seen, reached = set(), {ROOT / "README.md"}
    for _ in range(3):
        pages = {page for page in reached - seen if page.suffix == ".md"}
        seen |= pages
        reached |= {target for page in pages for target in links(page)}
    assert ROOT / file in reached


def test_the_reference_has_every_public_name():
    named = set(re.findall(r"^\.\. auto(?:class|function|exception|module):: (?:vsc_pyro\.)?(\w+)$", REFERENCE, re.M))
    assert named - {"distributions", "objectives", "plots"} == set(vsc.__all__)


@pytest.mark.parametrize("name", ["datasets", "distributions", "objectives", "plots"])
def test_the_reference_has_every_public_name_of(name):
    (block,) = re.findall(rf"^\.\. automodule:: vsc_pyro\.{name}\n((?:   :.*\n)+)", REFERENCE, re.M)
    assert ":members:" in block
    left_out = {excluded for line in re.findall(r":exclude-members: (.*)", block) for excluded in line.split(", ")}
    assert left_out <= set(vsc.__all__) & set(importlib.import_module(f"vsc_pyro.{name}").__all__)


def test_notebooks_are_stored_without_outputs():
    notebooks = [*ROOT.glob("docs/notebooks/*.ipynb")]
    assert len(notebooks) == 3
    for notebook in notebooks:
        code = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code), notebook.name


def test_results_say_where_they_come_from():
    for name in "results", "performance":
        _, *sections = re.split(r"^## .*$", (ROOT / "docs" / f"{name}.md").read_text(), flags=re.M)
        for section in sections:
            if "|---" in section:
                assert re.search(r"`(?:python|bash) |no script", section), section[:200]
                assert re.search(r"\b[0-9a-f]{7}\b", section), section[:200]
                assert "2026-" in section, section[:200]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
