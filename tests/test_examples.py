"""Every example runs on real data and leaves what it promises: as the script, in this process, but for mnist_vsc.py."""

import base64
import contextlib
import csv
import functools
import importlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import arviz
import numpy as np
import pyro
import pytest
import torch
from conftest import assert_mean_equals
from matplotlib.image import imread, imsave
from sklearn.datasets import load_sample_images

import vsc_pyro as vsc
from vsc_pyro.objectives import AnalyticELBO

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
from common import running  # noqa: E402

METRICS = """dataset binarize latent_dim inclusion gate objective epochs seed device seconds
test_elbo test_reconstruction test_kl test_iwae iwae_draws relaxation_gap
expected_l0 hard_l0 hoyer active_units num_test""".split()
FIGURES = "reconstructions prior_samples traversals inclusion_map training_curve".split()
SWAP_COLUMNS = [
    *("system", "-ELBO", "-IW bound", "-objective", "relaxation gap", "-reconstruction", "KL", "KL is", "E[L0]"),
    *("Hoyer", "active units", "used", "collapsed", "probe accuracy", "seconds"),
]
REFITTED = {"posterior mean": "refitted", "LASSO": "LASSO, refitted"}
SMALL = "--dataset digits --epochs 2 --latent-dim 6 --hidden 20 --iwae-draws 5 --device cpu".split()


# What has been trained for two epochs explains nothing, and is warned of.
TRAINED_BRIEFLY = "ignore:the code explains nothing,ignore:after"


class Ended(NamedTuple):
    """What a script has left when it ended."""

    returncode: int
    stdout: str
    stderr: str


def start(name, *arguments):
    """An example in an interpreter of its own, which needs seconds to import what is here already."""
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": TRAINED_BRIEFLY})


def run(name, *arguments):
    """An example as a script, `__main__`, in this process."""
    with mock.patch.object(sys, "argv", [name, *map(str, arguments)]):
        return ended(lambda: runpy.run_path(str(EXAMPLES / name), run_name="__main__"))


def call(name, *arguments):
    """The `main` of an example, whose module tests may have changed."""
    main = importlib.import_module(name.removesuffix(".py")).main
    return ended(lambda: running.run(lambda: main(list(map(str, arguments)))))


def ended(task):
    out, error, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        warnings.catch_warnings(),
        pyro.get_param_store().scope(),
    ):
        warnings.resetwarnings()
        for message in ("the code explains nothing", "after"):
            warnings.filterwarnings("ignore", message)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        try:
            task()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            if isinstance(end.code, str):
                print(end.code, file=error)
    return Ended(status, out.getvalue(), error.getvalue())


def test_every_example_has_a_test():
    text = Path(__file__).read_text()
    for example in EXAMPLES.glob("*.py"):
        assert f'run("{example.name}"' in text or f'start("{example.name}"' in text, (
            f"{example.name} has no test in this file"
        )


@pytest.mark.slow
def test_bare_svi():
    result = run("bare_svi.py", "--steps", 60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("360 data, binarisation: dynamic") == 2


def content(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of mnist_vsc.py, for tests that only read it: what it said, and its folder."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return start("mnist_vsc.py", *SMALL, "--output", folder, "--quiet"), folder


@pytest.mark.slow
def test_mnist_vsc_writes_what_it_promises(finished):
    result, folder = finished
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "ELBO" in result.stdout
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(METRICS) <= metrics.keys()
    assert (metrics["dataset"], metrics["epochs"], metrics["num_test"], metrics["iwae_draws"]) == ("digits", 2, 360, 5)
    assert metrics["test_elbo"] == pytest.approx(metrics["test_reconstruction"] - metrics["test_kl"])
    with open(folder / "history.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    for name in FIGURES:
        assert imread(folder / f"{name}.png").std() > 0.01
    files = {"metrics.json", "history.csv", "checkpoint.pt", "config.json", *(f"{name}.png" for name in FIGURES)}
    assert {file.name for file in folder.iterdir()} == files | {"model"}
    card = (folder / "model" / "README.md").read_text()
    assert f"{metrics['test_elbo']:.2f}  hard spikes" in card
    assert vsc.load(folder / "model").encoder.latent_dim == 6


@pytest.mark.slow
@pytest.mark.usefixtures("unpainted")
def test_mnist_vsc_never_overwrites_a_run_by_itself(tmp_path):
    arguments = (*SMALL, "--output", tmp_path, "--quiet")
    assert call("mnist_vsc.py", *arguments).returncode == 0
    before = content(tmp_path)
    refused = call("mnist_vsc.py", *arguments)
    assert refused.returncode != 0
    assert "holds a finished run; pass --resume to go on with it, --overwrite to replace it" in refused.stderr
    other = call("mnist_vsc.py", *arguments, "--resume", "--gate", "score")
    assert "holds a run with gate='concrete' (now 'score'); resume with the same settings" in other.stderr
    assert content(tmp_path) == before
    typo = call("mnist_vsc.py", *arguments, "--overwrite", "--device", "tpu9")
    assert typo.returncode != 0
    assert content(tmp_path) == before
    too_many = call("mnist_vsc.py", *arguments, "--overwrite", "--prior", "pseudo-input", "--num-pseudo-inputs", 3000)
    assert (
        "num_pseudo_inputs=3000 pseudo-inputs start at as many different data, got 1437; pass fewer" in too_many.stderr
    )
    assert content(tmp_path) == before
    odd = call("mnist_vsc.py", *arguments, "--overwrite", "--gate", "disarm", "--num-draws", 3)
    assert "the gate draws codes 2 at a time, got num_draws=3" in odd.stderr
    assert content(tmp_path) == before
    longer = call("mnist_vsc.py", *arguments, "--resume", "--epochs", 3)
    assert longer.returncode == 0, longer.stderr
    assert json.loads((tmp_path / "metrics.json").read_text())["epochs"] == 3
    anew = call("mnist_vsc.py", *arguments, "--overwrite")
    assert anew.returncode == 0, anew.stderr
    assert json.loads((tmp_path / "metrics.json").read_text())["epochs"] == 2


@pytest.fixture
def one_thread():
    """One thread in this process, as in a subprocess with OMP_NUM_THREADS=1: sums are the same to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("unpainted", "one_thread")
def test_mnist_vsc_interrupted_and_resumed_gives_the_same_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr("mnist_vsc.FIGURES", ("training_curve",))
    settings = "--dataset digits --epochs 10 --batch-size 20 --latent-dim 6 --hidden 20 --iwae-draws 5".split()
    command = [sys.executable, EXAMPLES / "mnist_vsc.py", *settings, "--device", "cpu", "--output", tmp_path / "a"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # A shell that runs the tests in the background has them ignore interrupts, and what they start as well.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heed)
    while not (tmp_path / "a" / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode != 0
    assert "interrupted; pass --resume to go on" in error
    assert not (tmp_path / "a" / "metrics.json").exists()
    results = []
    for arguments in (["--output", tmp_path / "a", "--resume"], ["--output", tmp_path / "b"]):
        done = call("mnist_vsc.py", *settings, "--device", "cpu", "--quiet", *arguments)
        assert done.returncode == 0, done.stderr
        results.append(json.loads((Path(arguments[1]) / "metrics.json").read_text()))
    for metrics in results:
        del metrics["seconds"], metrics["seconds_this_run"]
    assert results[0] == results[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("--prior", "normal", "--objective", "trace"),
        ("--learn-slab", "--learn-inclusion", "--gate", "score", "--inclusion", "0.3", "--beta", "2"),
        ("--gate", "shifted-sigmoid", "--binarize", "none", "--encoder-activation", "tanh"),
        ("--gate", "straight-through", "--binarize", "static", "--hidden", "20", "10"),
        ("--prior", "laplace", "--lr-drop", "1"),
        ("--num-draws", "4", "--gate", "disarm", "--lr-decay"),
        ("--objective", "importance-weighted", "--gate", "score", "--num-draws", "3"),
        ("--prior", "cauchy", "--dataset", "smiley", "--batch-size", "2000"),
        ("--slab", "cauchy", "--warmup", "4", "6"),
        ("--hyperprior", "1", "9", "--learn-inclusion", "global", "--slab", "log-normal"),
        ("--num-pseudo-inputs", "5", "--prior", "pseudo-input", "--warmup", "--sparsity-weight", "0.1"),
        ("--assignment", "paper", "--prior", "pseudo-input", "--slab", "laplace"),
        ("--assignment", "optimal", "--prior", "pseudo-input"),
    ],
    ids=lambda arguments: arguments[1],
)
@pytest.mark.usefixtures("unpainted")
def test_mnist_vsc_takes_every_system(tmp_path, arguments, monkeypatch):
    if "--prior" not in arguments:  # such figures are those of `finished`
        monkeypatch.setattr("mnist_vsc.FIGURES", ("training_curve",))
    result = call("mnist_vsc.py", *SMALL, "--quiet", "--output", tmp_path, *arguments)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "pseudo_inputs.png").exists() == ("pseudo-input" in arguments)


@pytest.mark.slow
def test_explore(finished, tmp_path):
    missing = run("explore.py", tmp_path)
    assert missing.returncode == 1
    assert missing.stderr.startswith(f"error: {tmp_path} holds no finished run of mnist_vsc.py: config.json")
    assert "Traceback" not in missing.stderr
    result = call("explore.py", finished[1], "--num-data", 4, "--output", tmp_path / "page.html")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.startswith(f"{tmp_path / 'page.html'}, 0.0")
    assert "{{" not in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_inspect_posterior(finished, tmp_path, unpainted):
    folder = tmp_path / "inspection"
    result = run("inspect_posterior.py", finished[1], "--num-data", 3, "--num-samples", 20, "--output", folder)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    page = (folder / "report.html").read_text(encoding="utf-8")
    figures = sorted(folder.glob("*.png"))
    assert page.count('<img src="data:image/png;base64,') == page.count("<img") == len(figures) > 15
    for figure in figures:
        assert base64.b64encode(figure.read_bytes()).decode() in page
    assert "://" not in page
    assert "{{" not in page
    loaded = arviz.from_netcdf(folder / "posterior.nc")
    assert loaded["posterior"]["active"].shape == (1, 20, 3, 6)
    missing = call("inspect_posterior.py", tmp_path / "missing")
    assert missing.returncode == 1
    assert missing.stderr.startswith(f"error: {tmp_path / 'missing'} holds no finished run of mnist_vsc.py")


@pytest.mark.slow
def test_inspect_posterior_replaces_a_report_only_on_demand(finished, tmp_path):
    folder = tmp_path / "inspection"
    folder.mkdir()
    (folder / "report.html").write_text("mine")
    before = {file: file.read_bytes() for file in folder.iterdir()}
    refused = call("inspect_posterior.py", finished[1], "--output", folder)
    assert f"{folder} holds a report (report.html); pass --overwrite" in refused.stderr
    itself = call("inspect_posterior.py", finished[1], "--output", folder, "--overwrite", "--compare", finished[1])
    assert f"--compare {finished[1]} is the run itself" in itself.stderr
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.slow
def test_compare_gates(tmp_path):
    small = (*SMALL, "--points", 2, "--test-data", 100, "--batch-size", 500, "--quiet", "--output", tmp_path)
    first = run("compare_gates.py", *small, "--gates", "disarm", "concrete-annealed")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    before = (tmp_path / "disarm" / "curve.json").read_bytes()
    more = call("compare_gates.py", *small, "--gates", "importance-weighted", "--resume")
    assert more.returncode == 0, more.stderr
    assert (tmp_path / "disarm" / "curve.json").read_bytes() == before
    with open(tmp_path / "curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["concrete-annealed", "disarm", "importance-weighted"]
    assert [(row["gate"], row["epoch"]) for row in rows] == [(name, epoch) for name in names for epoch in "12"]
    assert [row["num_test"] for row in rows] == 3 * ["100", "360"]
    assert all(float(row["iwae"]) > float(row["elbo"]) for row in rows)
    assert imread(tmp_path / "curves.png").std() > 0.02
    assert (tmp_path / "table.md").read_text() in more.stdout
    unknown = call("compare_gates.py", *small, "--gates", "hard", "--overwrite")
    assert "--gates: unknown gate 'hard'" in unknown.stderr
    assert (tmp_path / "disarm" / "curve.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("unpainted")
def test_mnist_vsc_says_that_a_divergence_is_sampled(tmp_path):
    result = call("mnist_vsc.py", *SMALL, "--quiet", "--output", tmp_path, "--prior", "normal-mixture")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("the KL divergence at site 'z' has no closed form and is sampled") == 1
    assert "sampled" in result.stdout


@pytest.mark.usefixtures("unpainted")
def test_mnist_vsc_falls_back_loudly_and_only_on_auto(tmp_path, monkeypatch):
    monkeypatch.delenv("VSC_PYRO_DATA", raising=False)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no network, whatever machine this is
    small = (*"--epochs 2 --hidden 20 --iwae-draws 5 --device cpu --quiet --data-root".split(), tmp_path / "empty")
    fallback = call("mnist_vsc.py", *small, "--output", tmp_path / "a")
    assert fallback.returncode == 0, fallback.stderr
    assert fallback.stderr.count("\n") == 1
    assert (
        "MNIST is not at hand, training on scikit-learn's bundled 8x8 digits instead, with 20 latents, "
        in fallback.stderr
    )
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["dataset"] == "digits"
    strict = call("mnist_vsc.py", *small, "--dataset", "mnist", "--output", tmp_path / "b")
    assert strict.returncode != 0
    assert "put the four files" in strict.stderr
    assert "Traceback" not in strict.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("unpainted")
def test_mnist_vsc_reads_real_mnist_from_the_environment(mnist_root, tmp_path, monkeypatch):
    load = vsc.datasets.load

    def some(name, *args, **kwargs):
        data = load(name, *args, **kwargs)
        return type(data)(data.train[:2000], data.test[:500])

    monkeypatch.setattr("vsc_pyro.datasets.load", some)
    monkeypatch.setenv("VSC_PYRO_DATA", str(mnist_root))
    small = "--epochs 1 --batch-size 1000 --hidden 20 --iwae-draws 2 --device cpu --quiet".split()
    result = call("mnist_vsc.py", *small, "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    settings = ("dataset", "latent_dim", "binarize", "learn_inclusion")
    assert [metrics[name] for name in settings] == ["mnist", 50, "dynamic", "fixed"]


@pytest.mark.slow
@pytest.mark.usefixtures("unpainted")
def test_a_warmup_in_proportion_to_the_run_is_not_extended_and_nothing_is_lost(tmp_path):
    arguments = (*SMALL, "--output", tmp_path, "--quiet", "--warmup")
    assert call("mnist_vsc.py", *arguments).returncode == 0
    before = (tmp_path / "metrics.json").read_bytes()
    refused = call("mnist_vsc.py", *arguments, "--resume", "--epochs", 3)
    assert refused.returncode != 0
    assert "is of a run with schedules=" in refused.stderr
    assert (tmp_path / "metrics.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("unpainted")
def test_a_decay_in_proportion_to_the_run_is_not_extended_either(tmp_path):
    arguments = (*SMALL, "--output", tmp_path, "--quiet", "--lr-decay")
    assert call("mnist_vsc.py", *arguments).returncode == 0
    before = (tmp_path / "metrics.json").read_bytes()
    refused = call("mnist_vsc.py", *arguments, "--resume", "--epochs", 3)
    assert "holds a run with epochs=2 (now 3)" in refused.stderr
    assert (tmp_path / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ("sparse_patches.py", "--num-patches", "50", "--inclusion", "3"),
            "inclusion must lie strictly between 0 and 1",
        ),
        (("sparse_patches.py", "--size", "2"), "--size must be at least 4"),
        (("exact_inference.py", "--datasets", "digits", "--latent-dim", "13"), "at most 12 latents, got 13"),
        (("exact_inference.py", "--datasets", "digits", "--refine-draws", "20"), "objective='exact' draws no codes"),
        (("linear_rate_distortion.py", "--inclusions", "0.1", "3"), "inclusion must lie strictly between 0 and 1"),
    ],
)
def test_other_examples_refuse_bad_arguments_before_any_training(tmp_path, command, message):
    result = call(*command, "--quiet", "--output", tmp_path / "run")
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sparse_patches(tmp_path):
    small = [*"--epochs 1 --latent-dim 30 --num-patches 2000 --size 8 --device cpu --quiet --output".split(), tmp_path]
    result = run("sparse_patches.py", *small)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "metrics.json").read_text())["systems"]
    assert set(results) == {"laplace", "spike-slab"}
    for name in results:
        assert imread(tmp_path / f"receptive_fields_{name}.png").std() > 0.02
        assert 0 < results[name]["orientation"] < 1
    refused = call("sparse_patches.py", *small)
    assert refused.returncode != 0
    assert "exists; pass --overwrite to replace it" in refused.stderr


@pytest.mark.slow
def test_sklearn_denoising(tmp_path):
    faces = np.repeat(np.arange(10), 8)
    drawn = np.random.default_rng(0).integers(0, 255, (80, 64, 64)) // 2 + 8 * faces[:, None, None]
    np.savez(tmp_path / "olivetti.npz", images=drawn.astype(np.uint8), target=faces)
    small = "--few 4 --many 6 --epochs 2 --num-images 100 --device cpu --quiet".split()
    result = run("sklearn_denoising.py", *small, "--data-root", tmp_path, "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert imread(tmp_path / "run" / "denoising.png").std() > 0.02
    rows = {(row["data"], row["contestant"]): row for row in found["rows"]}
    assert len(rows) == 16
    for (data, contestant), row in rows.items():
        assert f"| {data} | {contestant} | {row['settings']} | {row['PSNR']:.4g} |" in result.stdout
        pixels = {"digits": 64, "faces": 1024}[data]
        assert row["PSNR"] == pytest.approx(-10 * np.log10(row["squared error"] / pixels))
        assert 0 <= row["active"] <= 6
        errors = found["validation"][data][contestant.partition(",")[0]]["squared error"]
        settings = found["validation"][data][contestant.partition(",")[0]]["settings"][int(np.argmin(errors))]
        assert row["settings"] == ", ".join(f"{key.removeprefix('code__')}={v}" for key, v in settings.items())
    refused = call("sklearn_denoising.py", "--output", tmp_path / "run")
    assert "exists; pass --overwrite to replace it" in refused.stderr


@pytest.mark.slow
def test_exact_inference(tmp_path):
    data = "--datasets linear-5x5 --num-data 500 --latent-dim 4 --steps 150 --device cpu --quiet".split()
    small = "--refine-steps 100 --num-test 30 --num-simulated 60".split()
    result = run("exact_inference.py", *data, *small, "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    results = json.loads((tmp_path / "metrics.json").read_text())["datasets"]
    assert list(results) == ["linear-5x5"]
    for name, row in results.items():
        assert row["elbo"] < row["elbo_refined"] < row["evidence"]
        assert row["gap"] == pytest.approx(row["evidence"] - row["elbo"])
        assert set(row["calibration"]) == {"encoder", "refined", "exact"}
        assert sum(row["calibration"]["refined"]["bin_count"]) == 60 * 4
        for kind in ("reliability", "ranks"):
            assert imread(tmp_path / f"{kind}_{name}.png").std() > 0.01
    assert (tmp_path / "table.md").read_text() in result.stdout
    refused = call("exact_inference.py", *data, *small, "--output", tmp_path)
    assert refused.returncode != 0
    assert "exists; pass --overwrite to replace it" in refused.stderr


@pytest.mark.slow
def test_linear_rate_distortion(tmp_path):
    small = "--size 6 --num-patches 1000 --num-test 200 --latent-dim 20 --batch-size 50 --steps 120 --warmup 30"
    ours = "--measurements 4 --lr 3e-3 --inclusions .05 .4 --noises .5"
    theirs = "--sparsities 1 4 30 --gains 1 4 --penalties .5 2 --passes 1"
    arguments = [*f"{small} {ours} {theirs} --quiet --output".split(), tmp_path]
    result = run("linear_rate_distortion.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    tables = {}
    for name in ("bounds", "errors"):
        assert imread(tmp_path / f"{name}.png").std() > 0.02
        assert (tmp_path / f"{name}.md").read_text() in result.stdout
        with open(tmp_path / f"{name}.csv", newline="") as file:
            tables[name] = list(csv.DictReader(file))
    curves = {run["objective"]: run["curve"] for run in metrics["bounds"]}
    assert [row["objective"] for row in tables["bounds"]] == list(curves)
    assert [step for step, _, _ in curves["exact"]] == [30, 60, 90, 120]
    sampled = [bound for name, curve in curves.items() if name != "exact" for _, _, bound in curve]
    assert metrics["target"] == max(sampled) < curves["exact"][-1][2]
    errors = {}
    for point in metrics["errors"]:
        errors.setdefault(point["coder"], []).append((point["L0"], point["squared error"]))
    assert len(tables["errors"]) == sum(map(len, errors.values()))
    assert {coder: len(points) for coder, points in errors.items()} == {
        **dict.fromkeys(("posterior mean", "refitted", "LASSO", "LASSO, refitted"), 2),
        **dict.fromkeys(("our dictionary, OMP", "OMP"), 3),  # of at most 20 atoms
        **dict.fromkeys(("our dictionary, OMP by gain", "OMP by gain"), 2),
    }
    for coder in ("posterior mean", "LASSO"):
        for (l0, error), (same, least) in zip(errors[coder], errors[REFITTED[coder]], strict=True):
            assert l0 == same
            assert least <= error < metrics["energy"]
    for coder in ("our dictionary, OMP", "OMP"):
        found = [error for _, error in errors[coder]]
        assert found == sorted(found, reverse=True)
        # No setting of a number for all does better than its own number for each.
        for gain, (l0, error) in zip((1, 4), errors[f"{coder} by gain"], strict=True):
            assert error + gain * l0 <= min(e + gain * n for n, e in errors[coder])
    refused = call("linear_rate_distortion.py", *arguments)
    assert refused.returncode != 0
    assert "exists; pass --overwrite to replace it" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--inclusion", "0"), "inclusion must lie strictly between 0 and 1, got 0.0"),
        (("--latent-dim", "0"), "--latent-dim: must be a whole number of at least 1, got '0'"),
        (("--batch-size", "0"), "--batch-size: must be a whole number of at least 1, got '0'"),
        (("--lr", "-1"), "--lr: must be a number above 0"),
        (("--device", "tpu9"), "device 'tpu9' is not available"),
        (("--seed", "-1"), "--seed: must be a whole number of at least 0"),
        (("--prior", "normal", "--learn-inclusion"), "--learn-inclusion goes with --prior spike-slab"),
        (("--prior", "laplace", "--warmup"), "--warmup goes with --prior spike-slab or pseudo-input, got --prior lap"),
        (("--warmup", "3"), "--warmup takes no number or two, steps at the standard slab and of the ramp, got [3]"),
        (("--prior", "pseudo-input", "--num-pseudo-inputs", "0"), "--num-pseudo-inputs: must be a whole number"),
        (
            ("--prior", "pseudo-input", "--sparsity-weight", "-1"),
            "sparsity_weight must be a finite number of at least 0",
        ),
        (("--prior", "pseudo-input", "--inclusion", "0.3"), "only as the target of --sparsity-weight, which is 0"),
        (
            ("--hyperprior", "1", "2", "--learn-inclusion", "fixed"),
            "is a prior of inclusions that are learned; pass learn_inclusion=",
        ),
        (("--resume", "--overwrite"), "--resume and --overwrite contradict each other"),
        (("--gate", "hard"), "invalid choice: 'hard'"),
        (("--iwae-draws", "0"), "--iwae-draws: must be a whole number of at least 1"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_mnist_vsc_refuses_bad_arguments_before_any_work(tmp_path, arguments, message):
    result = call("mnist_vsc.py", *SMALL, *arguments, "--quiet", "--output", tmp_path / "run")
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def table_of(folder):
    """The rows of table.csv, after a check that table.md says the same."""
    with open(folder / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = [line for line in (folder / "table.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    heads, _, *cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [dict(zip(heads, line, strict=True)) for line in cells] == [
        {head: cell or "-" for head, cell in row.items()} for row in rows
    ]
    return {row["system"]: row for row in rows}


@pytest.mark.slow
def test_swap_prior_compares_and_goes_on_with_more_systems(tmp_path):
    arguments = (*SMALL, "--quiet", "--output", tmp_path)
    first = run("swap_prior.py", *arguments, "--systems", "vae,autoencoder")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert "1437 labels, all there are (5000 asked for)" in first.stdout
    assert (tmp_path / "table.md").read_text() in first.stdout
    files = {"config.json", "table.csv", "table.md", "reconstructions.png"}
    assert {file.name for file in tmp_path.iterdir()} == files | {"vae", "autoencoder"}
    assert imread(tmp_path / "reconstructions.png").std() > 0.01
    table = table_of(tmp_path)
    assert list(table) == ["vae", "autoencoder"]
    assert list(table["vae"]) == SWAP_COLUMNS
    metrics = json.loads((tmp_path / "vae" / "metrics.json").read_text())
    assert float(table["vae"]["-ELBO"]) == pytest.approx(-metrics["elbo"], abs=0.005)
    assert float(table["vae"]["-reconstruction"]) == pytest.approx(-metrics["reconstruction"], abs=0.005)
    assert (metrics["num_data"], metrics["num_draws"], metrics["epochs"], metrics["probe_labels"]) == (360, 5, 2, 1437)
    assert [head for head, cell in table["autoencoder"].items() if not cell] == ["-ELBO", "-IW bound", "KL", "KL is"]

    other = call("swap_prior.py", *arguments, "--resume", "--epochs", 3)
    assert "holds a run with epochs=2 (now 3); resume with the same settings" in other.stderr
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.glob("*/*")}
    (tmp_path / "table.md").unlink()
    more = call("swap_prior.py", *arguments, "--resume", "--systems", "vsc-published")
    assert more.returncode == 0, more.stderr
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in before} == before  # nothing trained anew
    longer = table_of(tmp_path)
    assert list(longer) == ["vae", "vsc-published", "autoencoder"]
    assert {name: longer[name] for name in table} == table
    assert "does not bound the evidence" in more.stdout
    assert "does not bound the evidence" not in first.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("unpainted")
def test_swap_prior_trains_every_system_it_lists(tmp_path):
    listed = call("swap_prior.py", "--list", "--output", tmp_path / "none")
    systems = [line.split()[0] for line in listed.stdout.splitlines()]
    assert len(systems) == 17
    assert not (tmp_path / "none").exists()
    small = ("--epochs", 1, "--iwae-draws", 2, "--probe-labels", 100, "--quiet")
    result = call("swap_prior.py", *SMALL, *small, "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    table = table_of(tmp_path)
    assert list(table) == systems
    for system, row in table.items():
        assert float(row["used"]) + float(row["collapsed"]) == 6, system
        if row["-ELBO"]:
            assert float(row["-ELBO"]) == pytest.approx(float(row["-reconstruction"]) + float(row["KL"]), abs=0.011)


def test_swap_prior_refuses_unknown_systems_and_names_the_known(tmp_path):
    result = call("swap_prior.py", *SMALL, "--systems", "vae,vsk", "--quiet", "--output", tmp_path / "run")
    assert result.returncode != 0
    assert "--systems: unknown system 'vsk'; known are 'autoencoder', 'beta-vae', 'cauchy'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_gate_gradients(monkeypatch, tmp_path):
    small = "--dataset digits --latents 9 --hidden 20 --epochs 2 --images 3 --passes 400 --reference-draws 400".split()
    arguments = (*small, "--batch-size", 500, "--timed-steps", 1, "--quiet", "--output", tmp_path)
    result = run("gate_gradients.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    names = {f"gradients.{suffix}" for suffix in ("csv", "json", "md", "png")}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert imread(tmp_path / "gradients.png").std() > 0.01
    with open(tmp_path / "gradients.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 13 * 2  # states, estimators, targets
    states = {"initialisation": "0", "mid-training": "1", "end": "2"}  # and epochs
    assert {row["state"]: row["epochs"] for row in rows} == states
    for row in rows:
        assert float(row["variance_times_passes"]) == pytest.approx(int(row["passes"]) * float(row["variance"]))
        assert float(row["snr_per_ms"]) == pytest.approx(float(row["snr"]) / float(row["ms"]))
    before = (tmp_path / "gradients.md").read_text()
    assert before in result.stdout
    (tmp_path / "gradients.md").unlink()
    again = run("gradient_report.py", tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "gradients.md").read_text() == before
    monkeypatch.syspath_prepend(EXAMPLES)
    import gate_gradients

    with pytest.raises(SystemExit, match="exists; pass --overwrite to replace it"):
        gate_gradients.main([*map(str, arguments)])


@pytest.mark.slow
def test_gate_gradients_tells_biased_from_unbiased(monkeypatch, small_vae, digits):
    monkeypatch.syspath_prepend(EXAMPLES)
    import gate_gradients as example

    model, x = small_vae(latent_dim=3), digits.train.images[:4].round()
    truth = torch.stack(list(example.enumerated(model, x, 16, seed=0)))
    z = {}
    for name in ("straight-through", "concrete t=1", "leave-one-out x2", "disarm x2", "disarm x2, trace"):
        samples = example.estimated(model, x, example.ESTIMATORS[name], 10_000).unflatten(0, (example.BLOCKS, -1))
        for of, target in example.targets(model, x).items():
            z[name, of] = example.measure(example.ESTIMATORS[name], samples, truth, target, 1.0)["bias_z"]
    for (name, _), value in z.items():
        if example.ESTIMATORS[name].unbiased:
            assert abs(value) < 5
    assert min(z["straight-through", "logits"], z["concrete t=1", "logits"], z["straight-through", "weights"]) > 5


def test_gate_gradients_squared_norm_is_free_of_noise_and_knows_its_error(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    from gate_gradients import squared_norm

    mean = torch.linspace(-1, 1, 30)
    exact = float(mean @ mean)
    values, errors = zip(*(squared_norm(mean + 2 * torch.randn(50, 30)) for _ in range(400)), strict=True)
    values = torch.tensor(values)
    assert_mean_equals(values, exact)
    assert float(values.std()) == pytest.approx(sum(errors) / len(errors), rel=0.15)
    assert float(((mean + 2 * torch.randn(50, 30)).mean(0) ** 2).sum()) > exact  # what would be wrong


def test_gate_gradients_variance_by_the_kernel_is_that_of_the_weights(monkeypatch, small_vae, digits):
    monkeypatch.syspath_prepend(EXAMPLES)
    from gate_gradients import ESTIMATORS, estimated, targets, total_variance

    model, x = small_vae(latent_dim=3), digits.train.images[:1].round()
    samples = estimated(model, x, ESTIMATORS["concrete t=.5"], 300)
    for name, target in targets(model, x).items():
        direct = target.of(samples).var(0).sum()
        assert total_variance(samples, target.kernel) == pytest.approx(float(direct), rel=1e-3), name
    torch.manual_seed(7)
    model.encoder.gate = ESTIMATORS["concrete t=.5"].gate
    AnalyticELBO(max_plate_nesting=1).loss_and_grads(model.model, model.guide, x)
    torch.manual_seed(7)
    (gradient,) = targets(model, x)["weights"].of(estimated(model, x, ESTIMATORS["concrete t=.5"], 1))
    torch.testing.assert_close(gradient, torch.cat([p.grad.flatten() for p in model.encoder.parameters()]))


def test_picture_folder(tmp_path):
    for name, photograph in zip("ab", load_sample_images().images, strict=True):
        for number, columns in enumerate(np.split(photograph, 4, axis=1)):
            imsave(tmp_path / f"{name}{number}.png", columns)
    small = "--size 8 --latent-dim 4 --epochs 2 --device cpu --quiet --output".split()
    result = run("picture_folder.py", tmp_path, *small, tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "1 data, binarisation: none" in result.stdout
    assert vsc.load(tmp_path / "run/model").decoder.dictionary.shape == (4, 3, 8, 8)
    assert imread(tmp_path / "run/traversals.png").std() > 0.02
    assert "pass --overwrite to replace it" in run("picture_folder.py", tmp_path, *small, tmp_path / "run").stderr


def test_sparse_dictionary(tmp_path, request):
    def finished(output, *options):
        result = run("sparse_dictionary.py", *small, *options, "--output", tmp_path / output)
        assert result.returncode == 0, result.stderr
        return json.loads((tmp_path / output / "metrics.json").read_text())

    small = "--num-features 8 --expected-active 2 --batch-size 64 --device cpu --quiet".split()
    assert 0 < finished("world", *"--true-features 40 --dim 12 --steps 60".split())["mcc"] < 1
    for name in ("firing_densities", "reliability", "feature_cosines"):
        assert imread(tmp_path / f"world/{name}.png").std() > 0.02
    request.getfixturevalue("unpainted")
    (tmp_path / "files").mkdir()
    np.save(tmp_path / "files/a.npy", torch.randn(200, 12).numpy())
    shards = ("--data", tmp_path / "files")
    finished("own", *shards, "--steps", "20")
    assert (
        finished("own", *shards, "--steps", "30", "--resume")["num_data"] == 5 * 200
    )  # 20 batches, the fourth of each pass smaller
    assert "pass --resume to go on" in call("sparse_dictionary.py", *small, "--output", tmp_path / "own").stderr


@pytest.mark.usefixtures("unpainted")
def test_counts(tmp_path):
    """Real counts, the ink of digits, and simulated cells."""
    digits = vsc.datasets.load("digits").train[:300]
    counts = (16 * digits.images).round().flatten(1)
    file = tmp_path / "digits.npz"
    np.savez(file, X=counts.numpy(), y=digits.labels.numpy(), genes=[f"pixel {pixel}" for pixel in range(64)])
    small = "--latent-dim 3 --epochs 4 --device cpu --quiet".split()
    result = run("counts.py", *small, "--data", file, "--output", tmp_path / "real")
    assert result.returncode == 0, result.stderr
    assert all(f"{name}  types 0." in result.stdout for name in ("sparse", "dense ", "NMF   "))
    assert "of cells: pixel" in result.stdout
    for name in ("loadings", "inclusion"):
        assert (tmp_path / f"real/{name}.png").is_file()
    again = call("counts.py", *small, "--output", tmp_path / "real")
    assert "exists; pass --overwrite" in again.stderr
    cells, genes = importlib.import_module("counts").simulated(seed=0, num_cells=50)
    assert cells.shape == (50, len(genes))
    assert cells.class_names == tuple(f"type {number}" for number in range(6))
    assert cells.images.sum(1).min() > 0


@pytest.mark.slow
def test_sparse_regression(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("sparse_regression.py")
    assert result.returncode == 0, result.stderr
    assert [f"weight {j:3d}: inclusion" in result.stdout for j in range(9)] == 8 * [True] + [False]
    assert imread("sparse_regression.png").shape == (360, 960, 4)
