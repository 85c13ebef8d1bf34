"""What the README and the pages behind it tell a newcomer to type is run, not believed."""

import functools
import re
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions
import pytest
import torch
from matplotlib.image import imsave
from sklearn.datasets import load_sample_images, load_wine

import vsc_pyro as vsc
from vsc_pyro import plots

ROOT = Path(__file__).parent.parent
TUTORIAL = [f"docs/tutorial/{page}.md" for page in ("build", "train", "look", "right")]


def blocks(page, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def smaller(program, changes):
    """The program with other text in place of some; every change has something to change."""
    for here, there in changes.items():
        assert here in program
        program = program.replace(here, there)
    return program


def run(program, names):
    exec(compile(program, "page", "exec"), names)
    return names


def test_the_thirty_lines_run(tmp_path, monkeypatch):
    program, *_ = blocks("README.md")
    assert len(program.splitlines()) <= 30
    monkeypatch.chdir(tmp_path)
    run(smaller(program, {'"mnist", root="data"': '"digits"', "784": "64", "epochs=50": "epochs=1"}), {})
    assert {file.name for file in tmp_path.iterdir()} == {"vsc.pt", "traversals.png", "inclusion_map.png"}


@pytest.mark.slow
def test_a_table_of_ones_own_is_coded_as_shown(tmp_path, monkeypatch, capsys):
    _, program, _ = blocks("README.md")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vsc, "fit", functools.partial(vsc.fit, progress=False, epochs=100))
    monkeypatch.setattr(vsc, "evaluate", functools.partial(vsc.evaluate, num_draws=5))
    torch.manual_seed(0)
    names = run(program, {"vsc": vsc, "plots": plots})
    assert {file.name for file in tmp_path.iterdir()} == {"loadings.png"}
    assert names["codes"].hard.shape == (569, 10)
    assert vsc.evaluate(names["small"], names["features"]).r2 > 0.5
    assert "latents a datum uses" in capsys.readouterr().out


def test_a_sparse_dictionary_is_trained_as_shown(monkeypatch, capsys):
    _, _, program = blocks("README.md")
    monkeypatch.setattr(vsc, "fit", functools.partial(vsc.fit, progress=False))
    run(smaller(program, {"512": "32", "64": "8", "128": "16", "1500": "20", "5_000": "100"}), {"vsc": vsc})
    assert "calibration error" in capsys.readouterr().out


def test_a_model_is_kept_and_loaded_as_shown(tmp_path, monkeypatch, trained, digits):
    program = "".join(blocks("docs/keep.md"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vsc_pyro._recorded._classes", dict(vsc._recorded._classes))
    monkeypatch.setattr(vsc, "evaluate", functools.partial(vsc.evaluate, num_draws=5))
    names = run(program, {"torch": torch, "vsc": vsc, "model": trained, "train": digits.train, "test": digits.test})
    x = digits.test.images
    assert torch.equal(names["again"].encoder(x).mean, trained.encoder(x).mean)
    assert torch.equal(vsc.load("own").encoder(x).mean, names["own"].encoder(x).mean)


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    program = "".join(block for page in TUTORIAL for block in blocks(page))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vsc, "fit", functools.partial(vsc.fit, progress=False))
    names = run(smaller(program, {"epochs=60": "epochs=2", "test.images[:100]": "test.images[:10]"}), {})
    assert names["posterior"].base_dist.probs.shape == names["z"].shape == (3, 16)
    assert names["codes"].hard.shape == names["sparse"].shape == (360, 16)
    assert {file.name for file in tmp_path.iterdir()} == {
        *("digits.pt", "training_curve.png", "code.png", "explanation.png", "traversals.png", "inclusion_map.png"),
        "interpolation.png",
    }
    printed = capsys.readouterr().out
    shown = [block for page in TUTORIAL for block in blocks(page, "text")]
    assert len(shown) == 3
    for line in "".join(shown).splitlines():
        row, _, _ = line.partition("  ")
        assert row in printed, f"the tutorial shows {line!r}"


def test_a_prior_of_ones_own_is_the_class_that_is_shown():
    (program,) = blocks("docs/choosing/prior.md")
    names = run(program, {"torch": torch, "pyro": pyro})
    model = vsc.VAE(vsc.NormalEncoder(64, 50), vsc.BernoulliDecoder(50, 64), names["StudentPrior"]())
    train, _ = vsc.datasets.load("digits")
    with pytest.warns(UserWarning, match="is sampled"):
        history = vsc.fit(model, train, epochs=3, progress=False)
    assert history.elbo[-1] > history.elbo[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.sort_values")  # ArviZ 0.23 with pandas 3.1
@pytest.mark.filterwarnings("ignore:after 160 steps the code explains nothing")
def test_what_it_learnt_is_inspected_as_shown(digits, small_vae, tmp_path, monkeypatch, capsys):
    (program,) = blocks("docs/inside.md")
    model = small_vae(inclusion=0.6)  # of both images some latents are active
    vsc.fit(model, digits.train, epochs=20, progress=False)
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch, "vsc": vsc, "plots": plots, "model": model, "test": digits.test}
    run(smaller(program, {"arange(28)": "arange(8)", "< 14": "< 4"}), names)
    assert {file.name for file in tmp_path.iterdir()} == {
        *("code.png", "explanation.png", "interpolation.png", "posterior.nc")
    }
    assert names["filled"].mean.shape == (2, 1, 8, 8)
    assert "active[0, 0]" in capsys.readouterr().out


@pytest.mark.slow
def test_the_posterior_is_compared_with_the_truth_as_shown(capsys):
    (program,) = blocks("docs/trust.md")
    run(smaller(program, {"epochs=10": "epochs=1", "images[:500]": "images[:50]"}), {"vsc": vsc})
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("evidence", "calibration error", "tensor("))


@pytest.mark.slow
def test_data_of_ones_own_as_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vsc, "fit", functools.partial(vsc.fit, progress=False))
    np.save("table.npy", load_wine().data)
    (tmp_path / "faces").mkdir()
    for number, photograph in enumerate(load_sample_images().images):
        imsave(tmp_path / f"faces/{number}.png", photograph)
    table, covariates, pictures = blocks("docs/data.md")
    names = run(smaller(table, {"epochs=2000": "epochs=200"}), {})
    run(covariates, names | {"batch": torch.arange(178) % 2})
    assert vsc.evaluate(names["again"], names["test"]).r2 == vsc.evaluate(names["model"], names["test"]).r2 > 0.3
    names = run(smaller(pictures, {"vsc.fit(model, train)": "vsc.fit(model, train, epochs=2)"}), {})
    assert names["model"].decoder.dictionary.shape == (64, 1, 32, 32)
    figures = {"training.png", "loadings.png", "reconstructions.png", "traversals.png", "parts.png"}
    assert {file.name for file in tmp_path.glob("*.png")} == figures
    assert capsys.readouterr().out.count("binarisation: none") == 2


def test_the_estimator_is_used_as_shown(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = "".join(blocks("docs/sklearn.md"))
    names = run(smaller(program, {"max_iter=100,": "max_iter=2,", "[4, 8, 16]": "[4, 8]", "cv=3": "cv=2"}), {})
    assert names["codes"].shape == names["inclusion"].shape == names["frame"].shape == (450, 32)
    assert list(names["frame"])[:2] == ["spikeslabcoder0", "spikeslabcoder1"]
    assert names["denoised"].shape == (450, 64)
    assert Path("atoms.png").stat().st_size > 10_000
    assert ((names["inclusion"] > 0.5) == (names["frame"].to_numpy() != 0)).all()
    assert "code__expected_active" in capsys.readouterr().out


@pytest.mark.slow
def test_spikes_in_programs_of_ones_own_as_shown(capsys):
    program = "".join(blocks("docs/programs.md"))
    changes = {"steps=1000": "steps=600", "num_particles=20": "num_particles=8", "num_samples=200": "num_samples=5"}
    names = run(smaller(program, changes), {})
    assert (names["guide"].inclusion()["weights"] > 0.5).nonzero().flatten().tolist() == [0, 1, 2]
    assert (names["cleaned"].inclusion()["outlier"] > 0.5).nonzero().flatten().tolist() == [0, 1, 2, 3]
    loadings = (names["found"].inclusion()["loadings"] > 0.5).int()
    assert sorted(loadings.tolist()) == sorted(torch.eye(3).int().repeat_interleave(4, 1).tolist())
    assert "radius" in capsys.readouterr().out


def test_the_schedules_that_are_shown_are_some(digits):
    page = (ROOT / "docs" / "choosing" / "index.md").read_text()
    (row,) = re.findall(r"^\| `schedules=` \|.*$", page, flags=re.MULTILINE)
    shown = [code for code in re.findall("`(.*?)`", row) if "vsc." in code]
    assert len(shown) == 2
    for code in shown:
        model = vsc.VAE(vsc.SpikeSlabEncoder(64, 5), vsc.BernoulliDecoder(5, 64), vsc.SpikeSlabPrior(5))
        with pytest.warns(UserWarning, match="train longer or ramp sooner"):
            vsc.fit(model, digits.train, epochs=1, schedules=eval(code, {"vsc": vsc}), progress=False)


def test_commands_do_all_their_own_setup():
    commands = [block.strip() for page in ("README.md", "docs/inside.md") for block in blocks(page, "sh")]
    assert all(command.startswith("python3 -m venv .venv && .venv/bin/pip install -e ") for command in commands)
    assert [command.rpartition(" && ")[2] for command in commands] == [
        ".venv/bin/python examples/mnist_vsc.py",
        ".venv/bin/python -m pytest",
        ".venv/bin/python examples/inspect_posterior.py runs/mnist_vsc",
    ]
