"""Sparse dictionaries of known features: ours beside SAELens's autoencoders, scikit-learn's, a probe and the posterior.

    python benchmarks/dictionaries.py --cells CELLS --peers PYTHON --data-root data --jobs 2
    python benchmarks/dictionaries.py --figures FOLDER --methods ours BatchTopK "Matryoshka BatchTopK" JumpReLU probe

PYTHON is an interpreter that has sae-lens, torch, pyro-ppl and scipy; without it, its methods are left out. Worlds have
512 features in 64 dimensions, for dictionaries of 128 atoms, and 2,048 in 256, for 512. A seed is that of the world, of
its stream and of the weights. Every method reads the same batches of 1,024.

Settings are chosen from a grid: at the first of the sizes, the first seed and the largest budget, by F1 on a validation
sample. With them, the method runs at every size, seed and budget; figures are those of a test sample. Numbers of active
latents are in units of the expected number of features. "ours" has no grid: every setting is a default. Its variants
change one thing each. On real vectors all settings of a sweep are reported.

Each cell is one run. It is a file in the folder CELLS, written when it is finished, and a cell that has a file is not
run again: an interrupted command goes on where it stopped. The file of results is written anew after every cell.
On a CPU, times are processor time of one thread, without that of making the batches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dictionary_figures
import measure
import torch
from defaults import commit
from dictionary_methods import METHODS, run
from dictionary_worlds import REAL, SIZES, WORLDS, Cell, Machine, real_file, stored

from vsc_pyro._files import expanded, replacing

_HERE = Path(__file__).parent
_BUDGETS, _QUICK_BUDGETS = (6000, 1500), (40, 10)
_PARTS = ("synthetic", "real")
Found = dict[str, dict[str, Any]]  # by the name of the cell


# The plan -------------------------------------------------------------------------------------------------------------


class Plan:
    """All cells of a command, most valuable first."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.methods = [name for name in METHODS if name in args.methods]

    def cells(self, found: Found, failed: Mapping[str, str]) -> Iterator[tuple[Cell, bool]]:
        """Yield each cell whose settings are known, and if it is reported; grids are not, but for the chosen ones."""
        if "synthetic" in self.args.parts:
            first, *others = self.args.sizes
            for world in self.args.worlds:
                for method in self.methods:
                    yield from self._grid(method, world)
                    yield from self._chosen(method, world, first, self._budgets(method), found, failed)
            for steps in sorted(self.args.budgets):
                for world, size in ((world, size) for size in others for world in self.args.worlds):
                    for method in self.methods:
                        if steps in self._budgets(method):
                            yield from self._chosen(method, world, size, (steps,), found, failed)
        if "real" in self.args.parts:
            yield from self._real()

    def _budgets(self, method: str) -> tuple[int, ...]:
        budgets = tuple(sorted(self.args.budgets, reverse=True))
        return {"all": budgets, "least": budgets[-1:], "none": (0,)}[METHODS[method].budgets]

    def _grid_cells(self, method: str, world: str) -> list[Cell]:
        size, steps, seed = self.args.sizes[0], self._budgets(method)[0], self.args.seeds[0]
        if not _admits(method, size):
            return []
        return [Cell(method, world, size, steps, seed, tuple(settings.items())) for settings in METHODS[method].grid]

    def _grid(self, method: str, world: str) -> Iterator[tuple[Cell, bool]]:
        if len(METHODS[method].grid) > 1:
            yield from ((cell, False) for cell in self._grid_cells(method, world))

    def _chosen(
        self, method: str, world: str, size: str, budgets: tuple[int, ...], found: Found, failed: Mapping[str, str]
    ) -> Iterator[tuple[Cell, bool]]:
        settings = self._best(method, world, found, failed)
        if settings is not None and _admits(method, size):
            for steps in budgets:
                for seed in self.args.seeds:
                    yield Cell(method, world, size, steps, seed, settings), True

    def _best(
        self, method: str, world: str, found: Found, failed: Mapping[str, str]
    ) -> tuple[tuple[str, float], ...] | None:
        """Return the settings of the grid with the largest F1 on validation data, None while it is not complete."""
        if len(METHODS[method].grid) == 1:
            return tuple(METHODS[method].grid[0].items())
        cells = self._grid_cells(method, world)
        finished = [cell for cell in cells if cell.name in found]
        if not finished or any(cell.name not in found and cell.name not in failed for cell in cells):
            return None
        return max(finished, key=lambda cell: found[cell.name]["validation"]["f1"]).settings

    def chosen_worlds(self, found: Found, failed: Mapping[str, str]) -> list[str]:
        """Return the worlds for which the settings of all methods are known."""
        methods = [method for method in self.methods if _admits(method, self.args.sizes[0])]
        return [w for w in self.args.worlds if all(self._best(m, w, found, failed) is not None for m in methods)]

    def _real(self) -> Iterator[tuple[Cell, bool]]:
        size, steps = ("tiny words" if self.args.quick else "words"), min(self.args.budgets)
        for world in REAL:
            for seed in self.args.seeds:
                for method in self.methods:
                    for settings in METHODS[method].sweep:
                        yield Cell(method, world, size, steps, seed, tuple(settings.items())), True


def _admits(method: str, size: str) -> bool:
    sizes = METHODS[method].sizes
    return sizes is None or size in sizes


# Running --------------------------------------------------------------------------------------------------------------


class Peers:
    """The process that trains peers, started when it is first needed."""

    def __init__(self, python: str) -> None:
        paths = os.pathsep.join((str(_HERE), str(_HERE.parent), os.environ.get("PYTHONPATH", "")))
        self._process = subprocess.Popen(
            [python, _HERE / "dictionary_peers.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )
        self.versions = self._answer()

    def run(self, cell: Cell, machine: Machine) -> dict[str, Any]:
        root = None if machine.root is None else str(machine.root)
        asked = {"cell": cell._asdict(), "streams": str(machine.streams), "root": root, "device": machine.device}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return {**answer, "versions": self.versions}

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of the peers ended with code {self._process.wait()}")
        return json.loads(line)


_PEERS: dict[str, Peers] = {}


def run_cell(cell: Cell, folder: Path, machine: Machine, peers: str) -> dict[str, Any] | str:
    """Run a cell and write its file; return its figures, or the text of the error that it raised."""
    torch.set_num_threads(1)
    try:
        if METHODS[cell.method].run is not None:
            figures = run(cell, machine)
        else:
            if peers not in _PEERS:
                _PEERS[peers] = Peers(peers)
            figures = _PEERS[peers].run(cell, machine)
    except measure.UnavailableError as error:
        return str(error)
    except Exception:  # the other cells may succeed
        _PEERS.clear()
        return traceback.format_exc()
    about = {**cell._asdict(), "settings": dict(cell.settings), "commit": commit(), "device": machine.device}
    figures = _rounded({**about, **figures})
    with replacing(folder / f"{cell.name}.json") as temporary:
        temporary.write_text(json.dumps(figures) + "\n")
    return figures


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


class Serial:
    """An executor that does the work at once, in this process."""

    def submit(self, work: Any, *arguments: Any) -> Future:
        future: Future = Future()
        future.set_result(work(*arguments))
        return future

    def shutdown(self, **_: Any) -> None:
        """Nothing is left to do."""


def run_all(plan: Plan, session: measure.Session, folder: Path) -> None:
    """Run all cells without a file, and record them as they finish."""
    args, failed = plan.args, session.record["left_out"]
    machine = Machine(folder / "streams", args.data_root, str(session.device))
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    context = get_context("spawn")
    pool = Serial() if args.jobs == 1 else ProcessPoolExecutor(args.jobs, context, max_tasks_per_child=None)
    running: dict[Future, Cell] = {}
    try:
        while True:
            for cell in _waiting(plan, found, failed, running):
                if len(running) < args.jobs and not args.finished:
                    running[pool.submit(run_cell, cell, folder, machine, args.peers)] = cell
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, result = running.pop(future), future.result()
                if isinstance(result, str):
                    failed[cell.name] = result
                    measure.shout(f"{cell.name}: {result}")
                else:
                    found[cell.name] = result
                    print(f"{cell.name}: {_line(result)}", flush=True)
            _forget_streams(plan, found, failed, running, folder)
            _record(plan, session, found)
    finally:
        pool.shutdown(cancel_futures=True)
    _record(plan, session, found)


def _waiting(plan: Plan, found: Found, failed: Mapping[str, str], running: Mapping[Future, Cell]) -> list[Cell]:
    cells = {cell.name: cell for cell, _ in plan.cells(found, failed)}
    busy = {cell.name for cell in running.values()}
    return [cell for name, cell in cells.items() if name not in found and name not in failed and name not in busy]


def _forget_streams(
    plan: Plan, found: Found, failed: Mapping[str, str], running: Mapping[Future, Cell], folder: Path
) -> None:
    """Delete the stored batches that no cell needs any more."""
    streams = folder / "streams"
    needed = {stored(cell, streams) for cell in (*_waiting(plan, found, failed, running), *running.values())}
    for world in plan.chosen_worlds(found, failed):
        for path in set(streams.glob(f"{world}-*.npy")) - needed:
            path.unlink()


# The report -----------------------------------------------------------------------------------------------------------


def _record(plan: Plan, session: measure.Session, found: Found) -> None:
    """Write all finished cells of the plan."""
    cells: dict[str, dict[str, Any]] = {}
    for cell, is_reported in plan.cells(found, session.record["left_out"]):
        if cell.name in found:
            reported = is_reported or cells.get(cell.name, {}).get("reported", False)
            cells[cell.name] = {**found[cell.name], "reported": reported}
    session.record["results"] = list(cells.values())
    session.write()


def _line(cell: Mapping[str, Any]) -> str:
    test = cell["test"]
    names = ("hard_l0", "f1", "mcc", "hard_explained_variance")
    return ", ".join(f"{name} {test[name]:.3f}" for name in names if test[name] is not None)


# Head, name of the figure on test data, format.
COLUMNS = (
    ("L0", "hard_l0", ".2f"),
    ("F1", "f1", ".3f"),
    ("AP", "average_precision", ".3f"),
    ("MCC", "mcc", ".3f"),
    ("unique", "uniqueness", ".3f"),
    ("dead", "dead", ".3g"),
    ("EV", "explained_variance", ".3f"),
    ("ECE", "ece", ".4f"),
    ("likely", "likely_ece", ".3f"),
    ("skill", "brier_skill", ".3f"),
)


def tables(record: Mapping[str, Any]) -> None:
    """Print a table for each world and size: means over seeds, and the ranges of F1 and MCC."""
    groups: dict[tuple[str, str], dict[tuple[str, str, int], list[Mapping[str, Any]]]] = {}
    for cell in record["results"]:
        if cell["reported"]:
            settings = ", ".join(f"{name} {value:g}" for name, value in cell["settings"].items())
            rows = groups.setdefault((cell["world"], cell["size"]), {})
            rows.setdefault((cell["method"], settings, cell["steps"]), []).append(cell)
    for (world, size), rows in groups.items():
        if size in SIZES:
            title = f"{world}, {size} {tuple(SIZES[size])}: mean (range) of seeds"
            head = ["method", "settings", "steps", *(column[0] for column in COLUMNS), "ms a step", "seeds"]
            body = [[*map(str, key), *_columns(cells), str(len(cells))] for key, cells in rows.items()]
            measure.table(title, head, body)


def _columns(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = [
        _spread([cell["test"][name] for cell in cells], form, name in ("f1", "mcc")) for _, name, form in COLUMNS
    ]
    return [*columns, _spread([cell.get("ms_per_step") for cell in cells], ".1f", False)]


def _spread(values: Sequence[float | None], form: str, with_range: bool) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = format(sum(known) / len(known), form)
    return f"{mean} ({min(known):{form}} to {max(known):{form}})" if with_range and len(known) > 1 else mean


def check_peers(record: Mapping[str, Any]) -> None:
    """Say if this library's figures differ from SAELens's own."""
    found = [cell["sae_lens"]["largest_difference"] for cell in record["results"] if cell.get("sae_lens")]
    if found:
        print(f"\nlargest difference from SAELens's own figures: {max(found):.2g}, of {len(found)} cells")
        if max(found) > 1e-3:
            measure.shout("the figures of vsc_pyro.evaluate_dictionary are not SAELens's")


def _options() -> argparse.ArgumentParser:
    options = measure.parser(__doc__, rounds=None)
    options.set_defaults(device="cpu", threads=1)
    options.add_argument("--cells", type=expanded, help="folder of finished cells; default: a temporary one")
    options.add_argument("--peers", metavar="PYTHON", help="interpreter that has sae-lens")
    options.add_argument("--jobs", type=measure.whole, default=1, help="processes of one thread; default: 1")
    options.add_argument("--finished", action="store_true", help="report the finished cells, run nothing")
    options.add_argument(
        "--figures", type=expanded, metavar="FOLDER", help="draw methods of the file of results, run nothing"
    )
    options.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS)
    options.add_argument("--worlds", nargs="+", choices=WORLDS, default=WORLDS)
    options.add_argument("--sizes", nargs="+", choices=SIZES, help="default: small large, with --quick tiny")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    options.add_argument("--budgets", nargs="+", type=measure.whole, help=f"steps; default: {_BUDGETS}")
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    return options


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = _options().parse_args(argv)
    if args.figures is not None:
        output = measure.RESULTS / "dictionaries-cpu.json" if args.output is None else args.output
        record = json.loads(output.read_text())
        shown = [cell for cell in record["results"] if cell["method"] in args.methods]
        dictionary_figures.draw({"results": shown}, args.figures)
        return record
    args.budgets = args.budgets or (_QUICK_BUDGETS if args.quick else _BUDGETS)
    args.sizes = args.sizes or (["tiny"] if args.quick else ["small", "large"])
    session = measure.Session("dictionaries", args)
    for private in ("cells", "peers", "figures"):
        del session.record["arguments"][private]
    session.record["environment"]["commit"] = commit()
    if "real" in args.parts and any(not real_file(world, args.data_root).is_file() for world in REAL):
        measure.shout("no real vectors in the folder of --data-root")
        session.record["left_out"]["real"] = "no files in the folder of --data-root"
        args.parts = [part for part in args.parts if part != "real"]
    if args.peers is None:
        peers = [name for name in args.methods if METHODS[name].run is None]
        session.record["left_out"] |= dict.fromkeys(peers, "needs --peers, an interpreter that has sae-lens")
        args.methods = [name for name in args.methods if name not in peers]
    run_all(Plan(args), session, measure.temporary_folder() if args.cells is None else args.cells)
    tables(session.record)
    check_peers(session.record)
    return session.finish()


if __name__ == "__main__":
    main(sys.argv[1:])
