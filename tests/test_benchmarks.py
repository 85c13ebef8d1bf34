"""Every benchmark runs and leaves what it promises, and those that it compares compute the same thing."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import contestants
import defaults
import dictionaries
import dictionary
import dictionary_figures
import dictionary_methods
import ensemble
import evaluation
import loading
import measure
import pytest
import recipes
import regression
import scaling
import step
import torch
from conftest import assert_mean_equals
from contestants import CONTESTANTS, Place, Setting, hand_written, library_model
from dictionary_worlds import Cell, Machine, World
from torch.utils.flop_counter import FlopCounterMode

import vsc_pyro as vsc
from vsc_pyro.acceleration import BACKENDS

SPIKES = Setting(latent_dim=4, hidden=12, batch_size=16)
DENSE = SPIKES._replace(dense=True)
HERE = Place(torch.device("cpu"), inductor=False)
ANALYTIC = "vsc_pyro", "vsc_pyro, compiled", "PyTorch", "PyTorch, compiled"
RECORD = {"benchmark", "environment", "arguments", "data", "left_out", "results"}
ENVIRONMENT = {"date", "device", "cpu", "cores", "threads", "load", "load_at_end", "torch", "pyro", "vsc_pyro"}


def minibatches(setting, count=3):
    torch.manual_seed(1)
    return torch.bernoulli(torch.full((count, setting.batch_size, *contestants.SHAPE), 0.3))


def losses(contestant, batches):
    """Of a few steps, each from a seed of its own."""
    found = []
    with contestant.scope():
        for seed, x in enumerate(batches):
            torch.manual_seed(seed)
            found.append(float(contestant.step(x)))
    return found


@pytest.mark.parametrize("setting", [SPIKES, DENSE], ids=["spikes", "dense"])
@pytest.mark.parametrize("name", ANALYTIC)
def test_same_weights_and_noise_same_losses(name, setting):
    # Later losses are equal only where gradients and Adam's updates are.
    batches = minibatches(setting)
    model = library_model(setting, HERE)
    optimizer = torch.optim.Adam(model.parameters(), lr=contestants.LR)
    svi = vsc.SVI(model.model, model.guide, optimizer, vsc.AnalyticELBO())
    expected = losses(contestants.Contestant(svi.step), batches)
    assert losses(CONTESTANTS[name](setting, HERE), batches) == pytest.approx(expected, rel=1e-5)
    torch.manual_seed(2)
    untrained = float(hand_written(setting, HERE).loss(batches[2]).detach())
    assert untrained != pytest.approx(expected[2], rel=5e-4)


@pytest.mark.parametrize("name", ["Pyro", "Pyro, unchecked"])
def test_stock_pyro_takes_the_steps_of_its_objective(name):
    batches = minibatches(SPIKES)
    model = library_model(SPIKES, HERE)
    optimizer = torch.optim.Adam(model.parameters(), lr=contestants.LR)
    svi = vsc.SVI(model.model, model.guide, optimizer, vsc.TraceELBO())
    expected = losses(contestants.Contestant(svi.step), batches)
    assert losses(CONTESTANTS[name](SPIKES, HERE), batches) == pytest.approx(expected, rel=1e-5)


def test_pythae_trains_the_same_network():
    pytest.importorskip("pythae")
    batches = minibatches(DENSE, 4)
    found, ours = (losses(CONTESTANTS[name](DENSE, HERE), batches) for name in ("pythae", "vsc_pyro"))
    assert found == pytest.approx(ours, rel=1e-2)  # its posterior's scale is another function of the same head


def test_bounds_by_hand_are_the_library_s():
    (x,) = minibatches(SPIKES._replace(batch_size=150), 1)
    by_hand = evaluation.bounds_by_hand(hand_written(SPIKES, HERE), x, 50)
    bounds = vsc.bounds(library_model(SPIKES, HERE), x, num_draws=50)
    assert_mean_equals(by_hand - bounds.iwae, 0.0)
    assert by_hand.mean() > bounds.elbo.mean()


def test_compiled_bounds_are_the_library_s_or_none(monkeypatch):
    (x,), model = minibatches(SPIKES, 1), library_model(SPIKES, HERE)
    monkeypatch.setitem(BACKENDS, "inductor", lambda graph, inputs: graph)
    found = evaluation.compiled_bounds(model, x, 5)
    torch.testing.assert_close(found.iwae, vsc.bounds(model, x, num_draws=5).iwae)
    model.decoder.register_forward_hook(lambda _, inputs, __: print(float(inputs[0].sum())))
    with pytest.raises(UserWarning, match="bounds is not compiled: it looks at the value"):
        evaluation.compiled_bounds(model, x, 5)


@pytest.mark.parametrize("setting", [SPIKES, DENSE], ids=["spikes", "dense"])
def test_operations_of_a_step_are_counted(setting):
    net = hand_written(setting, HERE)
    with FlopCounterMode(display=False) as counter:
        net.loss(minibatches(setting, 1)[0]).backward()
    assert setting.flops == counter.get_total_flops()


@pytest.fixture
def record(tmp_path):
    """Runs a benchmark as `--quick` does, and reads what it wrote."""

    def run(script, *arguments):
        output = tmp_path / "found" / "record.json"
        command = ["--quick", "--device", "cpu", "--threads", "1", "--output", str(output), *arguments]
        returned = script.main(command)
        written = json.loads(output.read_text())
        assert written == json.loads(json.dumps(returned))
        assert written.keys() - {"losses"} == RECORD
        assert written["environment"].keys() >= ENVIRONMENT
        assert str(tmp_path) not in output.read_text()
        for result in written["results"]:
            for found in result.get("contestants", {}).values():
                assert found["seconds"].keys() == {"median", "q1", "q3", "n"}
                assert 0 < found["seconds"]["q1"] <= found["seconds"]["median"] <= found["seconds"]["q3"]
                assert len(found["rounds"]) == found["seconds"]["n"]
        return written

    return run


@pytest.mark.slow
def test_step(record, capsys):
    steps, epoch, dense_steps, dense_epoch = record(step)["results"]
    ours = {"vsc_pyro", "vsc_pyro, compiled", "vsc_pyro, bfloat16"}
    here = ours | {"Pyro", "Pyro, unchecked", "PyTorch", "PyTorch, compiled"}
    assert steps["contestants"].keys() == here
    assert dense_steps["contestants"].keys() - {"pythae"} == here
    for result in (epoch, dense_epoch):
        assert result["contestants"].keys() >= {"vsc_pyro", "Pyro", "PyTorch", *loaders()}
        for found in result["contestants"].values():
            assert found["ratios"].keys() == {"Pyro", "PyTorch", step.EXAMPLE}
        ratio = result["contestants"]["Pyro"]["ratios"]["PyTorch"]["median"]
        assert ratio == pytest.approx(
            result["contestants"]["Pyro"]["rounds"][0] / result["contestants"]["PyTorch"]["rounds"][0]
        )
        assert min(result["contestants"][name]["ratios"][step.EXAMPLE]["median"] for name in loaders()) == 1
    printed = capsys.readouterr().out
    assert "*** PyTorch, CUDA graph: needs a CUDA device ***" in printed
    assert "one epoch of 120 images" in printed


@pytest.mark.slow
def test_contestants_in_jax_have_the_same_loss_and_take_their_turns(record):
    python = os.environ.get("VSC_PYRO_JAX")
    if python is None:
        pytest.skip("VSC_PYRO_JAX names no interpreter with numpyro and optax")
    written = record(step, "--jax", python, "--contestants", "PyTorch")
    assert [(found["contestant"], found["dense"]) for found in written["losses"]] == [
        *(("JAX", False), ("NumPyro", True), ("JAX", True))
    ]
    for found in written["losses"]:
        assert abs(found["loss"] - found["by hand"]) <= 3 * found["standard error"]
    for result in written["results"][2:]:
        assert result["contestants"].keys() == {"PyTorch", "NumPyro", "JAX"}


def loaders():
    return f"{step.EXAMPLE}, 0 workers", f"{step.EXAMPLE}, 1 worker"


GPU = Path(measure.__file__).with_name("gpu.sh")


@pytest.mark.slow
def test_the_command_for_a_gpu_says_where_there_is_none():
    settings = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    run = subprocess.run(["bash", GPU], capture_output=True, text=True, env=settings)
    assert run.returncode == 1
    assert "finds no CUDA device here" in run.stderr
    assert run.stdout == ""


def test_the_command_for_a_gpu_takes_less_than_eight_minutes():
    limits = re.findall(r"^ *(?:run|benchmark) (\d+) ", GPU.read_text(), re.MULTILINE)
    assert len(limits) == 6
    assert sum(map(int, limits)) < 480


@pytest.mark.slow
def test_every_benchmark_for_a_gpu_runs_on_the_cpu(tmp_path):
    # The script writes the commands that it would give, and they are run here, where nothing need be imported anew.
    command = ["bash", GPU, "--quick", "--output", tmp_path]
    told = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHON": "echo"})
    assert told.returncode == 0, told.stderr
    commands = [line.split() for line in told.stdout.splitlines() if line.startswith("benchmarks/")]
    for script, *arguments in commands:
        importlib.import_module(Path(script).stem).main(arguments)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {f"{name}-quick.json" for name in ("step", "dictionary", "evaluation", "epoch")}


def test_recipes(record):
    results = record(recipes, "--rows", "digits-bundled")["results"]
    assert [result["recipe"] for result in results] == list(recipes.RECIPES)
    row = recipes.ROWS["fashion-vsc"]
    left = [recipe for recipe in recipes.RECIPES if recipes.admits(row, recipe)]
    assert left == ["plain", "cooldown 1/4", "cooldown 1/2", "warm-up", "late DisARM"]


def test_recipes_do_what_they_say():
    torch.manual_seed(0)
    row, x = recipes.ROWS["digits-bundled"], torch.rand(9, 1, 8, 8).round()
    encoder = vsc.SpikeSlabEncoder((1, 8, 8), 4, initial_inclusion=0.3)
    model = vsc.VAE(encoder, vsc.BernoulliDecoder(4, (1, 8, 8)), vsc.SpikeSlabPrior(4, 0.3))
    encoder.own_layer.bias.data += torch.linspace(-1, 1, 12)
    posterior, prior = encoder(x), model.prior(x)
    divergence = recipes.kl_divergence(posterior, prior)
    free, aggregate = recipes._elbo(row, recipes.FreeBits), recipes.aggregate(row, 20)
    each = recipes.kl_divergence(posterior.base_dist, prior.base_dist).mean(0)
    charged = free.charge(posterior, prior, divergence)
    torch.testing.assert_close(charged[0], each.clamp(min=0.05).sum())
    assert charged.sum() >= divergence.sum() * (1 - 1e-6)  # rounding
    charges = [aggregate.charge(posterior, prior, divergence).mean() for _ in range(12)]
    assert charges[0] <= charges[5] <= charges[10]  # the divergence is convex
    torch.testing.assert_close(charges[10], divergence.mean())
    torch.testing.assert_close(charges[11], divergence.mean())


@pytest.mark.slow
def test_scaling(record):
    result, of_dictionaries = record(scaling)["results"]
    (setting,) = scaling.settings(quick=True)
    found = result["contestants"][scaling.ENGINES[0]]
    assert found["fraction_of_peak"]["median"] > 0
    pixels = 4 * setting.batch_size * contestants.PIXELS
    # The data, the decoder's outputs and their gradients at least, and no more than a few times as much.
    assert 3 * pixels < found["peak_memory_bytes"] < 20 * pixels
    sizes = {(s.latent_dim, s.batch_size, s.hidden) for s in scaling.settings(quick=False)}
    assert sizes >= {(20_000, 200, 400), (50, 10_000, 400), (50, 200, 4000), (50, 200, 400)}
    assert of_dictionaries["contestants"].keys() == set(scaling.DICTIONARIES)
    assert of_dictionaries["contestants"][scaling.DICTIONARIES[0]]["peak_memory_bytes"] > 0
    assert (768, 16_384, 1024) in {size[:3] for size in scaling.dictionary_sizes(quick=False)}


def test_dictionary(record):
    (result,) = record(dictionary)["results"]
    assert result["contestants"].keys() == set(dictionary.contestants())
    for found in result["contestants"].values():
        assert found["ratios"].keys() == {f"{dictionary.BY_HAND}{mode}" for mode in dictionary.MODES}
        assert found["vectors_per_second"]["median"] > 0


@pytest.mark.slow
def test_ensemble(record):
    (result,) = record(ensemble, "--counts", "1", "2")["results"]
    together = {"ensemble of 1", "ensemble of 2", "ensemble of 2, not compiled"}
    assert result["contestants"].keys() == {ensemble.EAGER, ensemble.COMPILED} | together
    for found in result["contestants"].values():
        assert found["ratios"].keys() == {ensemble.EAGER, ensemble.COMPILED}


def test_evaluation(record):
    (result,) = record(evaluation)["results"]
    assert result["contestants"].keys() == {"vsc_pyro.evaluate", "vsc_pyro.bounds", evaluation.BY_HAND}
    for found in result["contestants"].values():
        draws = result["num_images"] * result["num_draws"]
        rates = [draws / seconds for seconds in found["rounds"]]
        assert found["draws_per_second"]["median"] == pytest.approx(sum(rates) / 2)


def test_defaults(record, tmp_path, capsys):
    pytest.importorskip("sklearn")
    names = ["faces", "wine", "digits-bundled"]
    written = record(defaults, "--rows", *names, "--seeds", "3", "--data-root", str(tmp_path))
    assert written["left_out"] == {"faces": ["needs more/olivetti.npz in the folder of --data-root"]}
    assert [(result["title"], result["seed"]) for result in written["results"]] == [(name, 3) for name in names[1:]]
    for result in written["results"]:
        found, is_binary = result["found"], result["title"] == "digits-bundled"
        assert found.keys() == set(defaults.CONTESTANTS) - ({"nmf"} if not is_binary else set())
        for values in found.values():
            assert values["r2_mean"] < 1
            assert ("explained_mean" in values) == is_binary
        assert found["dense"]["hard_l0"] == result["latent_dim"]
        assert 0 <= found["ours"]["expected_l0_used"] <= found["ours"]["expected_l0"] < result["latent_dim"]
        assert found["pca"]["r2_mean"] > found["pca-l0"]["r2_mean"] > 0
    assert "*** faces: needs more/olivetti.npz" in capsys.readouterr().out


@pytest.fixture
def wine():
    pytest.importorskip("sklearn")
    return defaults.ROWS["wine"].load(None)


def test_defaults_are_measured_about_the_training_mean(wine):
    baseline = defaults.Baseline(wine, seed=0)
    mean = wine.train.images.double().mean(0).expand_as(wine.test.images)
    assert baseline.r2(mean) == pytest.approx(0)
    assert baseline.r2(wine.test.images.double()) == pytest.approx(1)
    assert baseline.r2((mean + wine.test.images) / 2) == pytest.approx(0.75)


def test_defaults_decode_the_mean_and_the_hard_code(wine):
    row = defaults.ROWS["wine"]._replace(network="linear")
    torch.manual_seed(0)
    model = defaults.build(row, (13,), encoder_kwargs={"initial_inclusion": 0.5}, decoder_kwargs={"scale": 0.3})
    assert float(model.decoder.scale) == pytest.approx(0.3)
    x = wine.test.images
    codes = defaults.codes_of(model, x)
    with model.evaluating():
        posterior = model.encoder(x).base_dist
        weight, bias = model.decoder.network[0].weight, model.decoder.network[0].bias
        torch.testing.assert_close(codes["decoded_mean"], posterior.mean @ weight.T + bias)
        hard = posterior.slab.loc * (posterior.logits > 0)
        torch.testing.assert_close(codes["decoded_hard"], hard @ weight.T + bias)
        kl = torch.distributions.kl_divergence(model.encoder(x), model.prior(x))
        torch.testing.assert_close(codes["kl"].sum(1), kl)
    assert 0 < (codes["hard"] == 0).float().mean() < 1


def test_defaults_count_a_latent_that_is_on_and_says_something():
    gamma = torch.zeros(100, 5)
    gamma[:, 1] = 0.9  # the same for all data
    gamma[:1, 2] = 0.9  # on for one in a hundred
    gamma[:50, 3] = 0.4  # never on
    gamma[:, 4] = 0.9
    kl = torch.zeros(100, 5)
    kl[:, 4] = 0.02
    assert defaults.used({"gamma": gamma, "kl": kl}).tolist() == [False, False, True, False, True]


DICTIONARIES = "--parts", "synthetic", "--worlds", "hierarchical", "--seeds", "0", "--methods"


def test_dictionaries(record, tmp_path, capsys):
    methods = ["ours", "ours, zero-mean slab", "BatchTopK", "probe"]
    command = [*DICTIONARIES, *methods, "--cells", str(tmp_path / "cells")]
    written = record(dictionaries, *command)
    assert written["left_out"] == {"BatchTopK": "needs --peers, an interpreter that has sae-lens"}
    done = [(cell["method"], cell["steps"]) for cell in written["results"]]
    assert done == [("ours", 40), ("ours", 10), ("ours, zero-mean slab", 10), ("probe", 0)]
    for cell in written["results"]:
        assert {"f1", "mcc", "ece", "brier_skill"} <= cell["test"].keys()
        if cell["method"] != "probe":
            assert cell["vectors_per_second"] * cell["ms_per_step"] == pytest.approx(64e3, rel=1e-4)
    printed = capsys.readouterr().out
    assert "hierarchical, tiny" in printed
    assert "hierarchical-tiny-probe-0_steps-seed_0: " in printed
    assert record(dictionaries, *command, "--finished")["results"] == written["results"]
    assert record(dictionaries, *command)["results"] == written["results"]
    assert "hierarchical-tiny-probe-0_steps-seed_0: " not in capsys.readouterr().out  # its file is there
    figures = [*command, "--output", str(tmp_path / "found" / "record.json"), "--figures", str(tmp_path / "figures")]
    dictionaries.main(figures)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {f"dictionaries-hierarchical-tiny-{kind}.png" for kind in ("l0", "reliability")}
    figures = [*DICTIONARIES, "probe", "--output", figures[-3], "--figures", str(tmp_path / "of the probe")]
    dictionaries.main(figures)
    names = [path.name for path in (tmp_path / "of the probe").iterdir()]
    assert names == ["dictionaries-hierarchical-tiny-reliability.png"]


def test_figures_of_dictionaries_sum_seeds_and_show_every_reported_result():
    seeds = [
        {"bin_count": [3, 0, 0], "bin_inclusion": [0.2, None, None], "bin_frequency": [0.0, None, None]},
        {"bin_count": [1, 4, 0], "bin_inclusion": [0.4, 0.5, None], "bin_frequency": [1.0, 0.75, None]},
    ]
    bins = dictionary_figures._summed(seeds)
    assert bins.bin_count.tolist() == [4, 4, 0]
    assert bins.bin_inclusion[:2].tolist() == [0.25, 0.5]
    assert bins.bin_frequency[:2].tolist() == [0.25, 0.75]
    assert bins.ece == 0.125
    tests = [{"hard_l0": l0, "hard_explained_variance": l0 / 9, "f1": None} for l0 in (1.0, 4.0, 2.0)]
    cells = [{"method": "a", "steps": 9, "reported": test["hard_l0"] > 1, "test": test} for test in tests]
    cells.append({"method": "b", "steps": 3, "reported": True, "test": tests[0]})
    figure = dictionary_figures._against_l0(cells)
    (axes,) = figure.axes
    (legend,) = figure.legends
    kinds = ["every run of 9 steps", "reported run of 9 steps", "reported run of 3 steps"]
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", *kinds]
    assert [list(curve.get_xdata()) for curve in axes.get_lines()] == [[1.0, 2.0, 4.0], []]
    assert [points.get_offsets()[0, 0] for points in axes.collections] == [4.0, 2.0, 1.0]
    assert [len(points.get_facecolors()) for points in axes.collections] == [1, 1, 0]  # hollow at the smaller budget


def test_dictionaries_choose_by_validation_and_report_every_seed():
    command = [
        "--parts",
        "synthetic",
        "--sizes",
        "small",
        "large",
        "--budgets",
        "60",
        "15",
        "--seeds",
        "0",
        "1",
        "--worlds",
    ]
    args = dictionaries._options().parse_args([*command, "correlated", "--methods", "TopK", "true posterior"])
    plan = dictionaries.Plan(args)
    grid = [cell for cell, is_reported in plan.cells({}, {}) if not is_reported]
    assert len(grid) == len(dictionary_methods.METHODS["TopK"].grid)
    assert {(cell.size, cell.steps, cell.seed) for cell in grid} == {("small", 60, 0)}
    found = {cell.name: {"validation": {"f1": 0.1}, "test": {"f1": 0.9}} for cell in grid}
    found[grid[2].name] = {"validation": {"f1": 0.2}, "test": {"f1": 0.1}}
    reported = [cell for cell, is_reported in plan.cells(found, {}) if is_reported and cell.method == "TopK"]
    assert {cell.settings for cell in reported} == {grid[2].settings}
    runs = [(cell.size, cell.steps, cell.seed) for cell in reported]
    small, quarter, full = ([(size, steps, seed) for seed in (0, 1)] for size, steps in RUNS)
    assert runs == [*small, *[("small", 15, seed) for seed in (0, 1)], *quarter, *full]
    unfinished = {name: value for name, value in found.items() if name != grid[0].name}
    assert not [cell for cell, yes in plan.cells(unfinished, {}) if yes and cell.method == "TopK"]
    assert {cell.size for cell, _ in plan.cells({}, {}) if cell.method == "true posterior"} == {"small"}


RUNS = ("small", 60), ("large", 15), ("large", 60)


def test_dictionaries_read_the_stored_batches_of_the_world(tmp_path):
    world = World(Cell("ours", "correlated", "tiny", 3, 1), Machine(tmp_path, None, "cpu"))
    expected = [x for x, _ in zip(world.features, range(3), strict=False)]
    for _ in range(2):  # written, then read
        found = list(world.batches())
        assert len(found) == 3
        torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=2**-11, atol=1e-7)


def test_loading(record):
    (result,) = record(loading)["results"]
    assert len(result["contestants"]) == 5
    assert all(found["images_per_second"]["median"] > 0 for found in result["contestants"].values())


def test_both_ways_of_loading_yield_every_image(tmp_path):
    measure.write_random_mnist(tmp_path / "MNIST" / "raw", 50, 5)
    data = vsc.datasets.load("mnist", tmp_path, download=False).train
    from_disk = loading.mnist_loader(tmp_path, 20, 0, HERE.device).dataset
    assert torch.equal(torch.stack([image for image, _ in from_disk]), data.images)
    grey = vsc.Dataset(data.images)
    seen = torch.cat(list(loading.from_memory(grey, 20, torch.Generator().manual_seed(0))))
    assert not torch.equal(seen, data.images)
    assert torch.equal(seen.flatten(1).sum(1).sort().values, data.images.flatten(1).sum(1).sort().values)


def test_without_mnist_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "_MNIST_SIZES", (6, 5))
    args = measure.parser("", rounds=3).parse_args(["--device", "cpu", "--data-root", str(tmp_path)])
    session = measure.Session("anything", args)
    _, (train, test) = session.mnist()
    assert (len(train), len(test), session.record["data"]) == (6, 5, "random pixels")
    assert "RANDOM PIXELS" in capsys.readouterr().out


def test_rounds_take_every_contestant_in_turns():
    calls = []
    first, seconds = measure.interleaved({name: lambda name=name: calls.append(name) or 2.0 for name in "abc"}, 20)
    rounds = [tuple(calls[start : start + 3]) for start in range(0, 63, 3)]
    assert len(calls) == 63
    assert all(sorted(names) == list("abc") for names in rounds)
    assert len(set(rounds)) > 3
    assert seconds == {name: [2.0] * 20 for name in "abc"}
    assert first.keys() == seconds.keys()


@pytest.mark.parametrize("path", sorted(measure.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_record_has_results(path):
    record = json.loads(path.read_text())
    assert record.keys() - {"losses"} == RECORD
    assert record["results"]
    assert not record["arguments"].get("quick")


def test_regression_compares_with_the_truth(capsys, monkeypatch):
    monkeypatch.setattr(regression, "CELLS", ((12, 0.2, 0.0),))
    regression.main(["--seeds", "1", "--steps", "500"])
    _, _, row = capsys.readouterr().out.strip().splitlines()
    columns, _, mean, *_ = (float(cell) for cell in row.strip("| ").split(" | "))
    assert (columns, mean < 0.05) == (12, True)
