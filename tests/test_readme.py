"""What the README and the pages behind it tell a newcomer to type is run, not believed."""

import functools
import re
from pathlib import Path

import pyro
import pyro.distributions
import pytest
import torch

import vsc_pyro as vsc
from vsc_pyro import plots

ROOT = Path(__file__).parent.parent
PAGES = "README.md", "docs/choosing.md", "docs/inside.md", "docs/trust.md"
TEXT = "\n".join((ROOT / page).read_text() for page in PAGES)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_thirty_lines_run(tmp_path, monkeypatch):
    program, *_ = blocks("python")
    assert len(program.splitlines()) <= 30
    small = {'"mnist", root="data"': '"digits"', "784": "64", "epochs=50": "epochs=1"}
    for here, there in small.items():
        assert here in program
        program = program.replace(here, there)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {})
    assert {file.name for file in tmp_path.iterdir()} == {"vsc.pt", "traversals.png", "inclusion_map.png"}


@pytest.mark.slow
def test_a_table_of_ones_own_is_coded_as_shown(tmp_path, monkeypatch, capsys):
    _, program, *_ = blocks("python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vsc, "fit", functools.partial(vsc.fit, progress=False, epochs=100))
    monkeypatch.setattr(vsc, "evaluate", functools.partial(vsc.evaluate, num_draws=5))
    torch.manual_seed(0)
    names = {"vsc": vsc, "plots": plots}
    exec(compile(program, "README.md", "exec"), names)
    assert {file.name for file in tmp_path.iterdir()} == {"loadings.png"}
    assert names["codes"].hard.shape == (569, 10)
    assert vsc.evaluate(names["small"], names["features"]).r2 > 0.5
    assert "latents a datum uses" in capsys.readouterr().out


def test_a_prior_of_ones_own_is_the_class_that_is_shown():
    _, _, program, *_ = blocks("python")
    names = {"torch": torch, "pyro": pyro}
    exec(compile(program, "README.md", "exec"), names)
    model = vsc.VAE(vsc.NormalEncoder(64, 50), vsc.BernoulliDecoder(50, 64), names["StudentPrior"]())
    train, _ = vsc.datasets.load("digits")
    with pytest.warns(UserWarning, match="is sampled"):
        history = vsc.fit(model, train, epochs=3, progress=False)
    assert history.elbo[-1] > history.elbo[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.sort_values")  # ArviZ 0.23 with pandas 3.1
@pytest.mark.filterwarnings("ignore:after 160 steps the code explains nothing")
def test_what_it_learnt_is_inspected_as_shown(digits, small_vae, tmp_path, monkeypatch, capsys):
    _, _, _, program, _ = blocks("python")
    model = small_vae(inclusion=0.6)  # of both images some latents are active
    vsc.fit(model, digits.train, epochs=20, progress=False)
    for here, there in {"arange(28)": "arange(8)", "< 14": "< 4"}.items():
        assert here in program
        program = program.replace(here, there)
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch, "vsc": vsc, "plots": plots, "model": model, "test": digits.test}
    exec(compile(program, "README.md", "exec"), names)
    assert {file.name for file in tmp_path.iterdir()} == {
        *("code.png", "explanation.png", "interpolation.png", "posterior.nc")
    }
    assert names["filled"].mean.shape == (2, 1, 8, 8)
    assert "active[0, 0]" in capsys.readouterr().out


@pytest.mark.slow
def test_the_posterior_is_compared_with_the_truth_as_shown(capsys):
    *_, program = blocks("python")
    for here, there in {"epochs=10": "epochs=1", "images[:500]": "images[:50]"}.items():
        assert here in program
        program = program.replace(here, there)
    exec(compile(program, "README.md", "exec"), {"vsc": vsc})
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("evidence", "calibration error", "tensor("))


def test_the_schedules_that_are_shown_are_some(digits):
    (row,) = re.findall(r"^\| `schedules=` \|.*$", TEXT, flags=re.MULTILINE)
    shown = [code for code in re.findall("`(.*?)`", row) if "vsc." in code]
    assert len(shown) == 2
    for code in shown:
        model = vsc.VAE(vsc.SpikeSlabEncoder(64, 5), vsc.BernoulliDecoder(5, 64), vsc.SpikeSlabPrior(5))
        with pytest.warns(UserWarning, match="train longer or ramp sooner"):
            vsc.fit(model, digits.train, epochs=1, schedules=eval(code, {"vsc": vsc}), progress=False)


def test_two_commands_do_all_their_own_setup():
    commands = [block.strip() for block in blocks("sh")]
    assert all(command.startswith("python3 -m venv .venv && .venv/bin/pip install -e ") for command in commands)
    assert [command.rpartition(" && ")[2] for command in commands] == [
        ".venv/bin/python examples/mnist_vsc.py",
        ".venv/bin/python -m pytest",
        ".venv/bin/python examples/inspect_posterior.py runs/mnist_vsc",
    ]


def test_pictures_are_there():
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
            assert (file.parent / target).is_file(), f"{file.name} shows {target}"
