"""The frame of a study: independent runs, each trained once and kept, then one JSON, one table and one figure."""

import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import torch
from tqdm.auto import tqdm

sys.path.append(str(Path(__file__).resolve().parents[1]))  # common, which all examples share
from common.files import (
    check_entries,
    count,
    markdown,
    number,
    read_json,
    text,
    texts,
    write_figure,
    write_json,
    write_text,
)
from common.options import add_data_root, described, path, whole
from common.running import run as run_main

import vsc_pyro as vsc
from vsc_pyro._files import check_writable
from vsc_pyro.training.checkpoints import shown


def settings_of_a_run(value):
    """a table of settings"""
    return isinstance(value, dict)


def machine_of_a_run(value):
    """a table with words"""
    return isinstance(value, dict) and text(value.get("words"))


KINDS = {
    **dict.fromkeys(("settings", "figures"), settings_of_a_run),
    "machine": machine_of_a_run,
    **dict.fromkeys(("date", "commit"), text),
    "seconds": number,
    "threads": count,
}


PARENT = "VSC_PYRO_STUDY"  # in the environment of runs that another process started


@dataclasses.dataclass(frozen=True)
class Study:
    """One experiment of several runs.

    Args:
        file: path of the script, which names the study and starts a run in a process of its own.
        description: text of --help.
        runs: ``runs(quick)`` returns the settings of each run by its name; all that decides what a run computes is in
            its settings, as values that JSON keeps.
        measure: ``measure(settings, folder, data_root)`` trains what is missing in `folder` and returns the figures of
            the run, as values that JSON keeps.
        minutes: ``minutes(settings)`` returns about how long a run takes on one core.
        table: ``table(results)`` returns Markdown for the results by name of run, each with ``settings``, ``figures``.
        draw: ``draw(results)`` returns a matplotlib figure.
        pictures: names of PNG files that `measure` may leave in `folder`, to be copied beside the table.
        absent: ``absent(settings, data_root)`` returns the reason, in words, to skip a run, such as data that are not
            on disk; None to do it.
    """

    file: str
    description: str
    runs: Callable
    measure: Callable
    minutes: Callable
    table: Callable
    draw: Callable
    pictures: tuple = ()
    absent: Callable = lambda settings, data_root: None

    @property
    def name(self):
        return Path(self.file).stem


def parse(study, argv):
    parser = described(study.description)
    add = parser.add_argument
    add_data_root(parser)
    add("--quick", action="store_true", help="tiny runs on bundled data, to try the study in seconds")
    add("--jobs", type=whole, default=1, help="runs at a time, each in a process with its share of the cores")
    add("--only", nargs="+", default=["*"], metavar="PATTERN", help="runs by name, such as 'mnist-*'; default: all")
    add("--output", type=path, default=Path("runs/studies"), metavar="DIR", help="folder of the runs of all studies")
    add("--results", type=path, metavar="DIR", help="folder of JSON, table and figure; runs in it are not repeated")
    add("--run", help="do this run alone, and write no table")
    add("--quiet", action="store_true", help="no progress bars")
    return parser.parse_args(argv)


def main(study, argv=None):
    """Run the study's command line: do what is missing, then write table and figure of all that is there."""
    args = parse(study, argv)
    runs = study.runs(args.quick)
    args.output = args.output / ("quick" if args.quick else "")
    if args.run is not None:
        if args.run not in runs:
            raise ValueError(f"--run must be one of {', '.join(runs)}, got {args.run!r}")
        if PARENT in os.environ:
            threading.Thread(target=end_with_parent, daemon=True).start()
        if read_result(study, args.run, runs[args.run], args, {}) is None:
            do_run(study, args.run, runs[args.run], args)
        else:
            print(f"{args.run} is done")
        return None
    chosen = [name for name in runs if any(fnmatch(name, pattern) for pattern in args.only)]
    if unknown := [pattern for pattern in args.only if not any(fnmatch(name, pattern) for name in chosen)]:
        raise ValueError(f"--only must fit some of the runs {', '.join(runs)}, got {' '.join(unknown)}")
    kept = kept_runs(study, args)
    found = {name: read_result(study, name, runs[name], args, kept) for name in runs}
    missing = [name for name in chosen if found[name] is None]
    reasons = {name: study.absent(runs[name], args.data_root) for name in missing}
    for name, reason in reasons.items():
        if reason is not None:
            print(f"{name} is skipped: {reason}", flush=True)
    missing = [name for name in missing if reasons[name] is None]
    check_kept(study, args, kept, {name for name, result in found.items() if result is not None}.union(missing))
    for file in files_of(study, args):
        check_writable(file)
    cost = sum(study.minutes(runs[name]) for name in missing) / args.jobs
    print(f"{study.name}: {len(chosen)} runs, {len(missing)} to do, about {cost:.3g} minutes", flush=True)
    failed = do_runs(study, missing, runs, args)
    kept = kept_runs(study, args)  # another process may have written meanwhile
    found = {name: read_result(study, name, runs[name], args, kept) for name in runs}
    results = {name: result for name, result in found.items() if result is not None}
    if not failed:
        check_kept(study, args, kept, results)
    if results and results.keys() >= kept.keys():  # a failed run may have been to replace one that is kept
        write_results(study, results, args)
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(missing)} runs failed, and the same command tries them again: {'; '.join(failed)}"
        )
    return results


def folder_of(study_name, run, output):
    return output / study_name / run


def target_of(study, args):
    return args.output / study.name if args.results is None else args.results


def files_of(study, args):
    return [target_of(study, args) / f"{study.name}.{kind}" for kind in ("json", "md", "png")]


def command_of(study, args):
    return f"python examples/studies/{study.name}.py" + " --quick" * args.quick


def kept_runs(study, args):
    """Return the runs in the file of --results; raise `ValueError` if those of another command would be replaced."""
    file = files_of(study, args)[0]
    if not file.exists():
        return {}
    content = read_json(file)
    check_entries(file, content, {"command": text, "runs": settings_of_a_run})
    check_entries(file, content["runs"], dict.fromkeys(content["runs"], settings_of_a_run))
    for result in content["runs"].values():
        check_entries(file, result, KINDS)
    if content["command"] != command_of(study, args):
        raise ValueError(f"{file} is of {content['command']}, and would be replaced; pass another --results")
    return content["runs"]


def check_kept(study, args, kept, there):
    """Raise `ValueError` if a run that is kept is neither `there` nor to be done, and would vanish from the results."""
    if lost := sorted(kept.keys() - there):
        raise ValueError(
            f"{files_of(study, args)[0]} has runs that the study does not have, or has with other settings, and would "
            f"lose: {', '.join(lost)}; repeat with --only those it has, remove the others from the file, or pass "
            "another --results"
        )


def read_result(study, name, settings, args, kept):
    """Return the result of a run, or None if it is not finished; raise `ValueError` if it had other settings.

    A run of these settings among those `kept` counts as finished, and replaces an older one in the folder of runs.
    """
    file = folder_of(study.name, name, args.output) / "result.json"
    other = kept[name] if name in kept and kept[name]["settings"] == in_json(settings) else None
    if not file.exists():
        return other
    result = read_json(file)
    check_entries(file, result, KINDS)
    check_settings(file, result["settings"], settings)
    return result if other is None or result["date"] >= other["date"] else other


def in_json(settings):
    return json.loads(json.dumps(settings))  # a tuple comes back as a list


def check_settings(file, found, settings):
    if found != in_json(settings):
        raise ValueError(
            f"{file} is of a run with {shown(found)}, and the study has {shown(in_json(settings))}; move "
            f"{file.parent} away, or pass another --output"
        )


def claim(folder, settings):
    """Write settings into the folder of a run; raise `ValueError` if one with other settings was begun there."""
    if (begun := folder / "settings.json").exists():
        check_settings(begun, read_json(begun), settings)
    write_json(begun, settings)


def do_run(study, name, settings, args):
    """Do one run in this process and write its result, atomically and last of all its files."""
    folder = folder_of(study.name, name, args.output)
    claim(folder, settings)
    with counted(folder) as work:
        figures = study.measure(settings, folder, args.data_root)
    result = {
        "settings": settings,
        "figures": figures,
        "seconds": round(work["seconds"], 1),
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "commit": ", ".join(work["commits"]),
    }
    write_json(folder / "result.json", result)


@contextlib.contextmanager
def counted(folder):
    """Keep the commits and seconds of a run over interrupts in work.json; those of a killed process have no seconds."""
    file, start = folder / "work.json", time.perf_counter()
    work = read_json(file) if file.exists() else {"commits": [], "seconds": 0.0}
    check_entries(file, work, {"commits": texts, "seconds": number})
    work["commits"] = list(dict.fromkeys([*work["commits"], commit()]))
    write_json(file, work)
    try:
        yield work
    finally:
        work["seconds"] += time.perf_counter() - start
        write_json(file, work)


def do_runs(study, names, runs, args):
    """Do the runs; return one line for each that failed."""
    with tqdm(total=len(names), unit="run", desc=study.name, disable=args.quiet) as bar:
        if args.jobs > 1:
            return do_in_processes(study, names, args, bar)
        failed = []
        for name in names:
            bar.set_postfix_str(name)
            try:
                do_run(study, name, runs[name], args)
            except Exception as error:  # the others are done, as in processes
                traceback.print_exc()
                failed.append(f"{name}: error: {error}")
            bar.update()
        return failed


def do_in_processes(study, names, args, bar):
    waiting, at_work, failed = list(names), {}, []
    try:
        while waiting or at_work:
            while waiting and len(at_work) < args.jobs:
                name = waiting.pop(0)
                try:
                    at_work[name] = start(study, name, args)
                except OSError as error:
                    failed.append(f"{name}: error: {error}")
                    bar.update()
            time.sleep(0.2)
            for name in [name for name, process in at_work.items() if process.poll() is not None]:
                process = at_work.pop(name)
                process.stdin.close()
                if code := process.returncode:
                    log = folder_of(study.name, name, args.output) / "log.txt"
                    said = "".join(log.read_text().strip().splitlines()[-1:])
                    failed.append(f"{name}: {said if code > 0 else killed_by(-code)} ({log})")
                bar.update()
                bar.set_postfix_str(", ".join(at_work))
    finally:
        for process in at_work.values():
            process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)  # it counts its seconds
        for process in at_work.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdin.close()
    return failed


def killed_by(number):
    return f"killed by signal {number}, {signal.strsignal(number)}" + ", perhaps for want of memory" * (number == 9)


def start(study, name, args):
    """Start a run in a process of its own, which writes what it says to log.txt."""
    folder = folder_of(study.name, name, args.output)
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
    root = [] if args.data_root is None else ["--data-root", str(args.data_root)]
    output = args.output.parent if args.quick else args.output
    command = [sys.executable, study.file, "--run", name, "--output", str(output), *root, *["--quick"] * args.quick]
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, PARENT: str(os.getpid())}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=log, stderr=subprocess.STDOUT, env=environment)


def end_with_parent():
    """End this run when the study that started it ends, even if that was killed: its end of the pipe then closes."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def write_results(study, results, args):
    """Write NAME.json, NAME.md and NAME.png, of all runs that are done."""
    target = target_of(study, args)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(result)}" for name, result in results.items())
    about = f'"study": "{study.name}", "command": "{command_of(study, args)}"'
    # All is made before any file is replaced, so that a damaged result leaves them as they are.
    told, figure = study.table(results) + "\n\n" + provenance(study, results, args) + "\n", study.draw(results)
    content, table, picture = files_of(study, args)
    write_text(content, f'{{{about}, "runs": {{\n{lines}\n}}}}\n')  # a run a line
    write_text(table, told)
    write_figure(picture, figure, dpi=120)
    for run, picture in itertools.product(results, study.pictures):
        folder = folder_of(study.name, run, args.output)
        drawn, own = folder / f"{picture}.png", folder / "result.json"
        if drawn.exists() and own.exists() and read_json(own) == results[run]:  # not a newer one that was kept
            shutil.copyfile(drawn, target / f"{study.name}-{run}-{picture}.png")
    print(f"{told}\nwritten: {target / study.name}.json, .md, .png")


def provenance(study, results, args):
    """Return the line under a table: command, commits, dates, machines, seeds, number of runs and their time."""

    def several(values):
        return ", ".join(sorted(set(values)))

    found, planned = results.values(), len(study.runs(args.quick))
    commits = several(name for r in found for name in r["commit"].split(", "))
    return (
        f"`{command_of(study, args)}{' --data-root FOLDER' * (args.data_root is not None)}`; "
        f"commit {commits}; {several(r['date'] for r in found)}; "
        f"{several(r['machine']['words'] for r in found)}; seeds {several(str(r['settings']['seed']) for r in found)}; "
        f"{len(results)} of {planned} runs, {sum(r['seconds'] for r in found) / 60:.0f} minutes in all, "
        f"threads of a run: {several(str(r['threads']) for r in found)}."
    )


def machine():
    try:
        model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        model = None
    words = f"{model[1] if model else platform.machine()}, torch {torch.__version__}"
    return {"words": words, "cores": os.cpu_count(), "python": platform.python_version()}


@functools.cache
def commit():
    """Return the commit of this file, with a + if files that git knows have changed; "unknown" outside a checkout."""
    git = functools.partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True, text=True)
    try:
        head = git(["git", "rev-parse", "--short=7", "HEAD"])
        changed = git(["git", "status", "--porcelain", "--untracked-files=no"])
    except OSError:
        return "unknown"
    return head.stdout.strip() + "+" * bool(changed.stdout.strip()) if head.returncode == 0 else "unknown"


def fitted(model, data, folder, **options):
    """Return the history of `model` trained on `data`, from the checkpoint in `folder` where a run was interrupted.

    A finished model is kept in ``folder / "model"``.
    """
    history = vsc.fit(model, data, checkpoint=folder / "checkpoint.pt", resume=True, **options)
    model.save(folder / "model", overwrite=True)  # an interrupt after it may have come before the run's result
    return history


__all__ = [
    "Study",
    "claim",
    "counted",
    "fitted",
    "folder_of",
    "main",
    "markdown",
    "read_json",
    "run_main",
    "write_figure",
    "write_json",
]
