"""Every study runs with --quick, leaves what it promises, does nothing twice and goes on after an interrupt."""

import dataclasses
import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

STUDIES = Path(__file__).parent.parent / "examples" / "studies"
NAMES = sorted(file.stem for file in STUDIES.glob("*.py") if file.stem != "study")

pytestmark = pytest.mark.filterwarnings("ignore:the code explains nothing", "ignore:after")


def call(name, *arguments):
    """The study's `main`, in this process."""
    module = importlib.import_module(name)
    return importlib.import_module("study").main(module.STUDY, ["--quick", "--quiet", *map(str, arguments)])


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_quick_study_leaves_numbers_a_table_and_a_figure(name, tmp_path, capsys):
    runs = tmp_path / "runs"
    results = call(name, "--output", runs, "--results", tmp_path / "results")
    planned = importlib.import_module(name).runs(True)
    assert results.keys() == planned.keys()
    written = json.loads((tmp_path / "results" / f"{name}.json").read_text())
    assert written["runs"] == json.loads(json.dumps(results))
    for run, result in written["runs"].items():
        assert result["settings"] == json.loads(json.dumps(planned[run]))
        assert "NaN" not in json.dumps(result["figures"])
    text = (tmp_path / "results" / f"{name}.md").read_text()
    assert f"{len(planned)} of {len(planned)} runs" in text
    assert len(np.unique(imread(tmp_path / "results" / f"{name}.png")[..., :3])) > 20
    assert str(tmp_path) not in text + json.dumps(written)

    capsys.readouterr()
    before = files(runs)
    assert call(name, "--output", runs, "--results", tmp_path / "results") == written["runs"]
    assert "0 to do" in capsys.readouterr().out
    assert files(runs) == before
    # Runs in the file of results need no folder.
    assert call(name, "--output", tmp_path / "elsewhere", "--results", tmp_path / "results") == written["runs"]
    assert "0 to do" in capsys.readouterr().out


def command(*arguments):
    return [sys.executable, str(STUDIES / "bounds.py"), "--quick", "--quiet", *map(str, arguments)]


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_in_the_same_figures(tmp_path):
    chosen = "--only", "digits-vae-8", "digits-learned-*"
    whole = call("bounds", "--output", tmp_path / "whole", *chosen)
    assert len(whole) == 2
    process = subprocess.Popen(command("--output", tmp_path / "cut", "--jobs", 2, *chosen), stdout=subprocess.DEVNULL)
    checkpoint = tmp_path / "cut" / "quick" / "bounds" / "digits-vae-8" / "checkpoint.pt"
    while not checkpoint.exists() and process.poll() is None:
        pass
    process.kill()
    process.wait()
    again = subprocess.run(command("--output", tmp_path / "cut", "--jobs", 2, *chosen), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    found = json.loads((tmp_path / "cut" / "quick" / "bounds" / "bounds.json").read_text())["runs"]
    for name, result in whole.items():
        assert found[name]["figures"] == pytest.approx(result["figures"], rel=1e-6)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_is_named_and_the_others_are_done(tmp_path, jobs):
    broken = tmp_path / "quick" / "bounds" / "digits-vae-8"
    broken.mkdir(parents=True)
    (broken / "checkpoint.pt").write_text("no checkpoint")
    only = "--only", "digits-vae-8", "digits-alpha-0.5-*"
    ended = subprocess.run(command("--output", tmp_path, "--jobs", jobs, *only), capture_output=True, text=True)
    assert ended.returncode == 1
    assert "1 of 2 runs failed" in ended.stderr
    assert "digits-vae-8: error: " in ended.stderr
    assert json.loads((tmp_path / "quick" / "bounds" / "bounds.json").read_text())["runs"].keys() == {
        "digits-alpha-0.5-8"
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "mnist-*"], "--only must fit some of the runs digits-"),
        (["--only", "digits-vae-8", "digits-vea-*"], r"--only must fit some of .*, got digits-vea-\*"),
        (["--run", "digits"], "--run must be one of digits-"),
    ],
)
def test_unknown_runs_are_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        call("bounds", "--output", tmp_path, *arguments)


def test_results_of_other_settings_are_refused(tmp_path):
    settings = importlib.import_module("bounds").runs(True)["digits-vae-8"]
    kept = {"figures": {}, "seconds": 1.0, "threads": 1, "machine": {"words": ""}, "date": "", "commit": ""}
    folder = tmp_path / "quick" / "bounds" / "digits-vae-8"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"settings": settings | {"lr": 0.5}, **kept}))
    with pytest.raises(ValueError, match=r"result\.json is of a run with .*move .* away, or pass another --output"):
        call("bounds", "--output", tmp_path)
    (folder / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result\.json is damaged"):
        call("bounds", "--output", tmp_path)
    (folder / "result.json").unlink()
    (folder / "settings.json").write_text(json.dumps(settings | {"lr": 0.5}))  # as a run leaves that was interrupted
    with pytest.raises(ValueError, match=r"settings\.json is of a run with .*move .* away"):
        call("bounds", "--output", tmp_path, "--only", "digits-vae-8")


def finished(**changed):
    """The result of a run of bounds as its file has it, with entries changed."""
    settings = importlib.import_module("bounds").runs(True)["digits-vae-8"]
    figures = {"elbo": -27.0, "expected_l0": 8.0, "used_latents": 8}
    result = {"settings": settings, "figures": figures, "seconds": 1.0, "threads": 1, "machine": {"words": "one"}}
    return result | {"date": "2026-01-01", "commit": "abc"} | changed


def keep(folder, **runs):
    folder.mkdir(exist_ok=True)
    content = {"command": "python examples/studies/bounds.py --quick", "runs": runs}
    (folder / "bounds.json").write_text(json.dumps(content))


def test_a_kept_run_does_not_vanish(tmp_path):
    result = finished()
    for name, settings in (("digits-vae-8", result["settings"] | {"lr": 0.5}), ("digits-old-8", result["settings"])):
        keep(tmp_path / "results", **{name: result | {"settings": settings}})
        before = (tmp_path / "results" / "bounds.json").read_text()
        with pytest.raises(ValueError, match=rf"and would lose: {name}; repeat with --only"):
            call("bounds", "--output", tmp_path, "--results", tmp_path / "results", "--only", "digits-learned-8")
        assert (tmp_path / "results" / "bounds.json").read_text() == before


def test_a_kept_run_stays_where_its_repetition_fails(tmp_path):
    keep(tmp_path / "results", **{"digits-vae-8": finished(settings=finished()["settings"] | {"lr": 0.5})})
    before = files(tmp_path / "results")
    folder = tmp_path / "quick" / "bounds" / "digits-vae-8"
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_text("no checkpoint")
    with pytest.raises(ValueError, match="1 of 1 runs failed"):
        call("bounds", "--output", tmp_path, "--results", tmp_path / "results", "--only", "digits-vae-8")
    assert files(tmp_path / "results") == before


def test_results_that_another_process_writes_meanwhile_stay(tmp_path, monkeypatch):
    study = importlib.import_module("study")
    do_runs = study.do_runs

    def meanwhile(*arguments):
        other = finished(settings=importlib.import_module("bounds").runs(True)["digits-learned-8"], commit="meanwhile")
        keep(tmp_path / "results", **{"digits-learned-8": other})
        return do_runs(*arguments)

    monkeypatch.setattr(study, "do_runs", meanwhile)
    results = call("bounds", "--output", tmp_path, "--results", tmp_path / "results", "--only", "digits-vae-8")
    assert results["digits-learned-8"]["commit"] == "meanwhile"
    assert results.keys() == {"digits-vae-8", "digits-learned-8"}


def test_pictures_are_those_of_the_results(tmp_path):
    study, bounds = importlib.import_module("study"), importlib.import_module("bounds").STUDY
    drawing = dataclasses.replace(bounds, pictures=("one",))
    folder = tmp_path / "quick" / "bounds" / "digits-vae-8"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(finished()))
    (folder / "one.png").write_text("a picture")
    options = "--quick", "--quiet", "--only", "digits-vae-8", "--output", tmp_path, "--results", tmp_path / "results"
    for date, there in (("2026-01-02", False), ("2025-12-31", True)):
        keep(tmp_path / "results", **{"digits-vae-8": finished(date=date)})
        study.main(drawing, [*map(str, options)])
        assert (tmp_path / "results" / "bounds-digits-vae-8-one.png").exists() == there


def test_an_interrupt_ends_runs_in_processes_and_counts_their_seconds(tmp_path):
    python, *arguments = command("--output", tmp_path, "--jobs", 2)
    # A shell's background job ignores the signal, and so would this process and its own.
    heeds = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen([python, "-c", heeds, python, *arguments], stdout=subprocess.DEVNULL)
    while not list(tmp_path.rglob("checkpoint.pt")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    begun = [json.loads(file.read_text()) for file in tmp_path.rglob("work.json")]
    assert begun
    assert all(work["seconds"] > 0 for work in begun)


def test_a_newer_result_replaces_an_older_one(tmp_path):
    folder = tmp_path / "quick" / "bounds" / "digits-vae-8"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(finished()))
    for date, kept in (("2026-01-02", "new"), ("2025-12-31", "abc")):
        keep(tmp_path / "results", **{"digits-vae-8": finished(date=date, commit="new")})
        only = "--only", "digits-vae-8"
        results = call("bounds", "--output", tmp_path, "--results", tmp_path / "results", *only)
        assert results["digits-vae-8"]["commit"] == kept


def test_a_damaged_result_leaves_the_files_of_results(tmp_path):
    folder = tmp_path / "quick" / "bounds" / "digits-vae-8"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(finished(figures={})))
    keep(tmp_path / "results", **{"digits-vae-8": finished()})
    before = files(tmp_path / "results")
    with pytest.raises(KeyError):
        call("bounds", "--output", tmp_path, "--results", tmp_path / "results", "--only", "digits-vae-8")
    assert files(tmp_path / "results") == before


def test_a_run_counts_the_commits_and_seconds_of_all_its_processes(tmp_path):
    folder = tmp_path / "quick" / "bounds" / "digits-vae-8"
    folder.mkdir(parents=True)
    (folder / "work.json").write_text(json.dumps({"commits": ["abc"], "seconds": 5000.0}))
    assert call("bounds", "--output", tmp_path, "--run", "digits-vae-8") is None
    result = json.loads((folder / "result.json").read_text())
    assert result["commit"].startswith("abc, ")
    assert 5000 < result["seconds"] < 6000
    before = files(folder)
    call("bounds", "--output", tmp_path, "--run", "digits-vae-8")
    assert files(folder) == before


def test_a_folder_that_cannot_be_made_fails_its_run_alone(tmp_path):
    (tmp_path / "quick" / "bounds").mkdir(parents=True)
    (tmp_path / "quick" / "bounds" / "digits-vae-8").touch()
    with pytest.raises(ValueError, match=r"1 of 2 runs failed.*digits-vae-8: error: .*File exists"):
        call("bounds", "--output", tmp_path, "--jobs", 2, "--only", "digits-vae-8", "digits-learned-8")
    assert (tmp_path / "quick" / "bounds" / "digits-learned-8" / "result.json").exists()


def test_a_file_in_place_of_the_results_is_refused_before_any_run(tmp_path):
    (tmp_path / "results").touch()
    with pytest.raises(OSError, match="results"):
        call("bounds", "--output", tmp_path / "runs", "--results", tmp_path / "results", "--only", "digits-vae-8")
    assert not (tmp_path / "runs").exists()


def test_a_model_of_bounds_with_other_settings_is_not_classified(tmp_path):
    folder = tmp_path / "quick" / "bounds" / "digits-vae-8"
    folder.mkdir(parents=True)
    settings = importlib.import_module("bounds").runs(True)["digits-vae-8"]
    (folder / "settings.json").write_text(json.dumps(settings | {"epochs": 1}))
    with pytest.raises(ValueError, match=r"bounds.digits-vae-8.settings\.json is of a run with .*epochs.* move"):
        call("classification", "--output", tmp_path, "--only", "digits-vae-8")
    shutil.rmtree(folder)
    call("classification", "--output", tmp_path, "--only", "digits-vae-8")  # trains the model, as bounds would
    assert json.loads((folder / "settings.json").read_text()) == settings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"command": "python examples/studies/bounds.py", "runs": {}}, "would be replaced; pass another --results"),
        ({"command": "python examples/studies/bounds.py --quick", "runs": {"digits-vae-8": 3}}, "is damaged: digits-"),
        ({"command": "python examples/studies/bounds.py --quick", "runs": {"digits-vae-8": {}}}, "lacks settings"),
    ],
)
def test_results_that_are_damaged_or_of_another_command_are_not_replaced(tmp_path, content, message):
    kept = tmp_path / "bounds.json"
    kept.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        call("bounds", "--output", tmp_path / "runs", "--results", tmp_path)
    assert json.loads(kept.read_text()) == content


@pytest.mark.slow
def test_runs_end_with_the_study_that_is_killed(tmp_path):
    process = subprocess.Popen(command("--output", tmp_path, "--jobs", 2), stdout=subprocess.DEVNULL)
    while not list(tmp_path.rglob("checkpoint.pt")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    time.sleep(6)
    assert not list(tmp_path.rglob("result.json"))


def test_a_figure_of_one_system_has_numbers_on_its_axes():
    bounds = importlib.import_module("bounds")
    settings = bounds.runs(True)["digits-vae-8"]
    figure = bounds.draw({"digits-vae-8": {"settings": settings, "figures": {"elbo": -27.0, "expected_l0": 8.0}}})
    low, high = figure.axes[0].get_ylim()
    assert 20 < low < 27 < high < 30


PARTS = ("train", "valid", "test")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train": np.ones((2, 784)), "test": np.ones((2, 784))}, r"must be an npz file of .*\(.*valid is not"),
        (dict.fromkeys(PARTS, np.ones((2, 392))), r"rows of 784 pixels in train, got shape \(2, 392\)"),
        (dict.fromkeys(PARTS, np.ones(0)), r"rows of 784 pixels in train, got shape \(0,\)"),
        (dict.fromkeys(PARTS, np.full((2, 784), 0.5)), r"zeros and ones in train, got 0\.5 to 0\.5"),
        ("no archive", r"binarized_mnist\.npz must be an npz file"),
        ("PK\3\4 cut off", r"binarized_mnist\.npz must be an npz file"),
        ("", r"binarized_mnist\.npz must be an npz file"),
    ],
)
def test_a_fixed_binarisation_of_other_images_is_refused(arrays, message, tmp_path):
    file = tmp_path / "binarized_mnist.npz"
    if isinstance(arrays, str):
        file.write_text(arrays)
    else:
        np.savez(file, **arrays)
    with pytest.raises(ValueError, match=message):
        importlib.import_module("likelihoods").read_static(file)


def test_a_fixed_binarisation_is_read(tmp_path):
    arrays = {name: np.eye(number, 784) for name, number in zip(PARTS, (3, 2, 1), strict=True)}
    np.savez(tmp_path / "a.npz", **arrays)
    parts = importlib.import_module("likelihoods").read_static(tmp_path / "a.npz")
    assert [tuple(part.shape) for part in parts] == [(3, 784), (2, 784), (1, 784)]
    assert all((part.sum(1) == 1).all() for part in parts)
