"""What examples leave in a folder: read back with care, and replaced without being lost."""

import json
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "examples"))
import inspect_posterior
import mnist_vsc
from common import data, outputs, running
from common import finished as finished_run

import vsc_pyro as vsc

SMALL = "--dataset digits --epochs 1 --latent-dim 3 --hidden 5 --iwae-draws 2 --device cpu --quiet --output".split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist_vsc, "FIGURES", ("training_curve",))  # the others take most of a run's time
        mnist_vsc.main([*SMALL, str(folder)])
    return folder


def content(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def a_copy(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist_vsc, "FIGURES", ("training_curve",))
    return Path(shutil.copytree(finished, tmp_path, copy_function=os.link, dirs_exist_ok=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_every_edit_of_a_runs_files_is_one_error_that_names_file_and_key(a_copy, name):
    random.seed(0)
    whole = json.loads((a_copy / name).read_text())
    file = a_copy / name
    file.unlink()
    values = [None, True, -1, 3.5, 10**400, float("nan"), "x", "--help", [], [1], ["x"], {}, {"x": [1]}, "1" * 9999]
    accepted = []
    for key in [*whole, "surprise"]:
        for value in [*random.sample(values, 4), "missing"]:
            edited = {k: v for k, v in {**whole, key: value}.items() if v != "missing"}
            file.write_text(json.dumps(edited))
            try:
                mnist_vsc.load_run(a_copy)
            except ValueError as error:
                message = str(error)
                assert str(file) in message or key == "epochs", message
                assert key in message, message
                assert "\n" not in message
                assert len(message) < 700
            else:
                accepted.append((key, value))
    # Nothing can be held against other figures, or the name of another device.
    measured = {**finished_run.KINDS, "surprise": None} if name == "metrics.json" else {"surprise": None}
    earlier = [(key, "missing") for key in outputs.EARLIER]
    strange = [(key, value) for key, value in accepted if (key, value) not in earlier and key not in measured]
    assert all(value == whole[key] for key, value in strange), accepted


@pytest.mark.parametrize("text", ["", "[1]", "{", "nul", '{"a": 1}', "[" * 10_000, "\ud800"])
def test_files_that_are_no_settings_are_named(a_copy, text):
    for name in ("config.json", "metrics.json"):
        file, whole = a_copy / name, (a_copy / name).read_bytes()
        file.unlink()
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(ValueError, match=rf"{file} is damaged"):
            mnist_vsc.load_run(a_copy)
        file.write_bytes(whole)
    (a_copy / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    if text != '{"a": 1}':
        with pytest.raises(SystemExit, match=r"config\.json is damaged.*; pass --overwrite"):
            mnist_vsc.main([*SMALL, str(a_copy), "--resume"])


@pytest.mark.parametrize(
    "refused",
    [
        ["--objective", "importance-weighted", "--gate", "score", "--num-draws", "3", "--beta", "2"],
        ["--lr", "1e39"],
        ["--inclusion", "2"],
    ],
)
def test_a_run_that_is_refused_or_fails_leaves_the_one_it_was_to_replace(a_copy, refused):
    before = content(a_copy)
    with pytest.raises((ValueError, RuntimeError, SystemExit)):
        mnist_vsc.main([*SMALL, str(a_copy), "--overwrite", *refused])
    assert content(a_copy) == before
    assert not list(a_copy.glob("replaced-*"))


def test_both_runs_stay_where_a_replacing_one_has_been_trained_and_not_measured(a_copy, monkeypatch, capsys):
    before = content(a_copy)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("vsc_pyro.evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt, match="pass --resume to go on with the run in"):
        mnist_vsc.main([*SMALL, str(a_copy), "--overwrite", "--latent-dim", "2"])
    (aside,) = a_copy.glob("replaced-*")
    assert f"the files to be replaced are in {aside}" in capsys.readouterr().err
    assert {a_copy / file.relative_to(aside): whole for file, whole in content(aside).items()} == before
    monkeypatch.undo()
    monkeypatch.setattr(mnist_vsc, "FIGURES", ("training_curve",))
    mnist_vsc.main([*SMALL, str(a_copy), "--resume", "--latent-dim", "2"])
    mnist_vsc.main([*SMALL, str(a_copy), "--overwrite"])
    files = {"config.json", "checkpoint.pt", "history.csv", "metrics.json", "training_curve.png", "model", aside.name}
    assert {file.name for file in a_copy.iterdir()} == files


def test_a_report_that_fails_leaves_the_one_it_was_to_replace(a_copy, monkeypatch):
    folder = a_copy / "inspection"
    folder.mkdir()
    for name in ("report.html", "code_0.png"):
        (folder / name).write_text("old")
    before = content(folder)

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("vsc_pyro.pages.sections.SECTIONS", (full,))
    with pytest.raises(OSError, match="No space"):
        inspect_posterior.main([str(a_copy), "--num-samples", "5", "--overwrite"])
    assert content(folder) == before


def test_what_is_put_aside_comes_back_even_if_it_could_not_all_be_moved(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    replace, calls = os.replace, []

    def twice(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError("it fails")
        replace(*args)

    monkeypatch.setattr(os, "replace", twice)
    with pytest.raises(OSError, match="it fails"), outputs.in_place_of(tmp_path, ["a", "b", "c"]):
        pass
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a": "a", "b": "b"}


def test_an_interrupt_is_one_line_and_the_status_of_shells(capsys):
    def interrupted():
        raise KeyboardInterrupt("pass --resume")

    with pytest.raises(SystemExit) as ended:
        running.run(interrupted)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted; pass --resume\n"


def test_an_interrupt_in_the_figures_of_a_run_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("vsc_pyro.plots.reconstructions", interrupted)
    with pytest.raises(SystemExit) as ended:
        running.run(lambda: mnist_vsc.main([*SMALL, str(tmp_path)]))
    assert ended.value.code == 130
    assert capsys.readouterr().err == f"interrupted; pass --resume to go on with the run in {tmp_path}\n"


def test_paths_of_examples_may_begin_in_the_home_folder(tmp_path, monkeypatch, finished):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = mnist_vsc.parse(["--output=~/run", "--data-root=~/data"])
    assert (args.output, args.data_root) == (tmp_path / "run", tmp_path / "data")
    assert inspect_posterior.parse(["~/run", "--output", "~/report"]).output == tmp_path / "report"
    with pytest.raises(SystemExit):
        mnist_vsc.parse(["--output=~nobody-here/run"])
    assert torch.is_tensor(mnist_vsc.load_run(finished)[0].reference)


def without_mnist(monkeypatch):
    load = vsc.datasets.load

    def offline(name, *args, **kwargs):
        if name == "mnist":
            raise FileNotFoundError("no network")
        return load(name, *args, **kwargs)

    monkeypatch.setattr("vsc_pyro.datasets.load", offline)
    monkeypatch.setattr(mnist_vsc, "FIGURES", ("training_curve",))


@pytest.mark.parametrize(
    ("said", "told", "latent_dim", "binarize", "learned"),
    [
        ("", "instead, with 20 latents, static binarisation, inclusion learned per-latent, 500 ", 20, "static", True),
        ("--binarize dynamic", "with 20 latents, inclusion learned per-latent, 500 ", 20, "dynamic", True),
        ("--latent-dim 4 --binarize none --learn-inclusion fixed --epochs 1", "digits instead (no ", 4, None, False),
        ("--prior normal --latent-dim 4", "instead, with static binarisation, 500 epochs (no ", 4, "static", None),
    ],
)
def test_what_nobody_says_is_as_the_data_want_it(
    tmp_path, monkeypatch, capsys, said, told, latent_dim, binarize, learned
):
    without_mnist(monkeypatch)
    monkeypatch.setitem(data.DEFAULTS_ON["digits"], "epochs", 1)
    told = told.replace("500", "1")
    command = [*"--hidden 5 --iwae-draws 2 --device cpu --quiet".split(), *said.split(), "--output", str(tmp_path)]
    mnist_vsc.main(command)
    assert told in capsys.readouterr().err
    config = json.loads((tmp_path / "config.json").read_text())
    asked = vars(mnist_vsc.parse(command))
    assert config == {name: asked[name] for name in config}  # what is open stays open
    mnist_vsc.main([*command, "--resume", "--epochs", "2"])
    model, args, found, train, _ = mnist_vsc.load_run(tmp_path)
    assert found["epochs"] == 2
    assert (train.name, train.binarize, args.latent_dim) == ("digits", binarize, latent_dim)
    assert model.encoder.latent_dim == found["latent_dim"] == latent_dim
    assert (None if learned is None else bool(model.prior.learn_inclusion)) == learned
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps({**found, "latent_dim": 50}))
    with pytest.raises(ValueError, match=r"of a run with latent_dim=50, and .*config\.json of one with"):
        mnist_vsc.load_run(tmp_path)


def test_what_nobody_says_on_other_data_is_the_same_for_all():
    for dataset in ("mnist", "fashion-mnist", "smiley"):
        args = mnist_vsc.with_defaults(mnist_vsc.parse([]), dataset)
        assert (args.latent_dim, args.binarize, args.learn_inclusion, args.epochs) == (50, "auto", "fixed", 50)
    asked = mnist_vsc.parse("--latent-dim 7 --binarize static --learn-inclusion global --epochs 3".split())
    assert mnist_vsc.with_defaults(asked, "mnist") == mnist_vsc.with_defaults(asked, "digits") == asked


def test_runs_of_before_a_setting_are_read_and_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist_vsc, "FIGURES", ("training_curve",))
    mnist_vsc.main([*SMALL, str(tmp_path)])
    for name in ("config.json", "metrics.json"):
        settings = json.loads((tmp_path / name).read_text())
        assert settings.keys() >= outputs.EARLIER.keys()
        (tmp_path / name).write_text(json.dumps({k: v for k, v in settings.items() if k not in outputs.EARLIER}))
    checkpoint = vsc.load_checkpoint(tmp_path / "checkpoint.pt")
    del checkpoint["settings"]["cooldown"]
    vsc.save_checkpoint(tmp_path / "checkpoint.pt", checkpoint)
    mnist_vsc.load_run(tmp_path)
    mnist_vsc.main([*SMALL, str(tmp_path), "--resume", "--epochs", "2"])
    assert json.loads((tmp_path / "metrics.json").read_text())["epochs"] == 2
