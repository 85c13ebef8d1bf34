"""Helpers of the benchmarks: options, MNIST or a loud substitute, interleaved rounds, tables and JSON.

The contestants of a comparison run in one process, in rounds, in a new random order in each round, so that other work
of the machine affects all of them. Reported are medians and quartiles over rounds, of seconds and of ratios *within* a
round. Other work disturbs these ratios less than it disturbs seconds.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import datetime
import json
import os
import platform
import random
import re
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch

import vsc_pyro as vsc
from vsc_pyro._arguments import positive_int
from vsc_pyro._devices import resolve_device
from vsc_pyro._files import expanded, replacing
from vsc_pyro.datasets import Split, default_root

RESULTS = Path(__file__).parent / "results"
_MNIST_SIZES, _QUICK_SIZES = (60_000, 10_000), (120, 120)


class Timing(NamedTuple):
    """Seconds of a run, and processor seconds of all threads of its process, where they are known."""

    seconds: float
    processor: float | None = None


Run = Callable[[], Timing]
"""Run a contestant once."""
Scope = Callable[[], contextlib.AbstractContextManager]
"""Make the context in which a contestant must run."""


class UnavailableError(Exception):
    """A contestant cannot run here; the message gives the reason."""


def parser(description: str, rounds: int | None) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks; `rounds` is None for benchmarks that compare no times."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one")
    options.add_argument("--threads", type=whole, help="number of threads of torch; default: its own")
    if rounds is not None:
        options.add_argument(
            "--rounds", type=whole, help=f"rounds of all contestants; default: {rounds}, with --quick 2"
        )
    options.add_argument("--data-root", type=expanded, help="folder that contains MNIST/raw; without it, random pixels")
    options.add_argument("--quick", action="store_true", help="tiny sizes, to test that the benchmark runs")
    options.add_argument(
        "--output",
        type=expanded,
        help="JSON file; default: results/NAME-DEVICE.json beside this file, with --quick none",
    )
    options.set_defaults(full_rounds=rounds, **({"rounds": None} if rounds is None else {}))
    return options


def whole(text: str) -> int:
    """Convert to an integer of at least 1, for `argparse`."""
    try:
        return positive_int("the value", int(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}") from error


class Session:
    """One run of a benchmark: its device, its options and its results so far.

    Args:
        name: name of the benchmark, and of its file of results.
        args: the parsed options.

    Attributes:
        device, rounds, quick: the values of the options.
        record: content of the file: ``environment``, ``arguments``, ``data``, ``left_out`` with reasons, and
            ``results``, with one entry for each comparison.
    """

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        self.name = name
        self.device = resolve_device(args.device)
        self.quick = args.quick
        self.rounds = args.rounds or (2 if args.quick else args.full_rounds)
        self._output = args.output
        self._root = args.data_root
        # Results are committed: paths of a private machine stay out of them.
        options = {k: v for k, v in vars(args).items() if k not in ("data_root", "output", "full_rounds", "jax")}
        self.record: dict[str, Any] = {
            "benchmark": name,
            "environment": environment(self.device),
            "arguments": options | {"rounds": self.rounds},
            "data": None,
            "left_out": {},
            "results": [],
        }
        found = self.record["environment"]
        threads = f"{found['threads']} threads of {found['cores']} cores"
        print(f"{name}: {found['device']}, {threads}, load {found['load'][0]:.1f}")

    def mnist(self) -> tuple[Path, Split]:
        """Return a folder with the files of MNIST, and their data; without MNIST, files of random pixels."""
        root = default_root() if self._root is None else self._root
        present = (root / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file()
        self.record["data"] = "MNIST" if present and not self.quick else "random pixels"
        if self.record["data"] != "MNIST":
            if not self.quick:
                shout(f"no MNIST in {root}: RANDOM PIXELS of the same shape, for times only")
            root = temporary_folder()
            counts = _QUICK_SIZES if self.quick else _MNIST_SIZES
            write_random_mnist(root / "MNIST" / "raw", *counts)
        return root, vsc.datasets.load("mnist", root, download=False)

    def available(self, builders: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """Build the contestants that can run here; the others are printed and recorded with the reason."""
        built = {}
        for name, build in builders.items():
            try:
                built[name] = build()
            except UnavailableError as error:
                reasons = self.record["left_out"].setdefault(name, [])
                if str(error) not in reasons:
                    shout(f"{name}: {error}")
                    reasons.append(str(error))
        return built

    def timed(self, work: Callable[[], object], repeats: int = 1, scope: Scope = contextlib.nullcontext) -> Run:
        """Return a contestant that does `work` `repeats` times within a context, and returns the timing of one."""

        def run() -> Timing:
            with scope():
                synchronize(self.device)
                start, processor = time.perf_counter(), time.process_time()
                for _ in range(repeats):
                    work()
                synchronize(self.device)
                return Timing((time.perf_counter() - start) / repeats, (time.process_time() - processor) / repeats)

        return run

    def compare(
        self,
        title: str,
        contestants: Mapping[str, Run],
        baselines: Sequence[str] = (),
        rounds: int | None = None,
        **about: Any,
    ) -> dict[str, Any]:
        """Run contestants in rounds; print and record their times, and the ratios to the times of the baselines."""
        first, timings = interleaved(contestants, rounds or self.rounds)
        seconds = {name: [timing.seconds for timing in found] for name, found in timings.items()}
        baselines = [name for name in baselines if name in contestants]
        result = {
            "title": title,
            **about,
            "contestants": {
                name: {
                    "seconds": summary(times),
                    "ratios": {
                        other: summary(t / u for t, u in zip(times, seconds[other], strict=True)) for other in baselines
                    },
                    **_processor_seconds(timings[name]),
                    "first_call_seconds": first[name],
                    "rounds": times,
                }
                for name, times in seconds.items()
            },
        }
        self.record["results"].append(result)
        rows = [
            [name, spread(found["seconds"], 1e3), *(spread(ratio) for ratio in found["ratios"].values())]
            for name, found in result["contestants"].items()
        ]
        table(title, ["median (quartiles) of rounds", "ms", *(f"/ {name}" for name in baselines)], rows)
        self.write()  # a later comparison may fail
        return result

    def finish(self) -> dict[str, Any]:
        """Write the record, and return it."""
        if (output := self.write()) is not None:
            print(f"\nwritten: {output}")
        return self.record

    def write(self) -> Path | None:
        """Write the record so far, and return its file, or None with `--quick` and no `--output`."""
        self.record["environment"]["load_at_end"] = os.getloadavg()
        output = self._output
        if output is None and not self.quick:
            output = RESULTS / f"{self.name}-{_slug(self.device)}.json"
        if output is not None:
            with replacing(output) as temporary:
                temporary.write_text(json.dumps(self.record, indent=1) + "\n")
        return output


def environment(device: torch.device) -> dict[str, Any]:
    """Return the machine and the versions of the software."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": _device_name(device),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "vsc_pyro": vsc.__version__,
        "cuda": torch.version.cuda,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        if found := re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()):
            return found[1]
    return platform.processor() or platform.machine()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_model()


def _slug(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    return re.sub(r"[^a-z0-9]+", "-", _device_name(device).lower()).strip("-")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor_seconds(timings: Iterable[Timing]) -> dict[str, Any]:
    found = [timing.processor for timing in timings if timing.processor is not None]
    return {"processor_seconds": summary(found)} if found else {}


def interleaved(contestants: Mapping[str, Run], rounds: int) -> tuple[dict[str, float], dict[str, list[Timing]]]:
    """Run each contestant once, then all of them in each round, in random order.

    Returns:
        Seconds of the first call of each, with compilation, and the timings of each round.
    """
    first, timings = {}, {name: [] for name in contestants}
    for name, run in contestants.items():
        start = time.perf_counter()
        run()
        first[name] = time.perf_counter() - start
    names, order = list(contestants), random.Random(0)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            timings[name].append(contestants[name]())
    return first, timings


def summary(values: Iterable[float]) -> dict[str, float]:
    """Return median, quartiles and number of the values."""
    values = list(values)
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {"median": median, "q1": low, "q3": high, "n": len(values)}


def spread(found: Mapping[str, float], factor: float = 1.0) -> str:
    """Return a summary as text: ``5.1 (4.9 to 5.3)``."""
    low, median, high = (f"{factor * found[key]:.3g}" for key in ("q1", "median", "q3"))
    return f"{median} ({low} to {high})"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text under their heads, the first column aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    print(f"\n{title}")
    for row in (head, *rows):
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *others]).rstrip(), flush=True)


def temporary_folder() -> Path:
    """Return a new folder that is deleted when the process ends."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def shout(text: str) -> None:
    """Print a message that nobody overlooks."""
    print(f"\n*** {text} ***", flush=True)


def write_random_mnist(folder: Path, num_train: int, num_test: int) -> None:
    """Write files of random pixels in the format of MNIST."""
    folder.mkdir(parents=True)
    bytes_ = np.random.default_rng(0)
    for kind, count in (("train", num_train), ("t10k", num_test)):
        images = struct.pack(">4i", 2051, count, 28, 28) + bytes_.bytes(count * 784)
        (folder / f"{kind}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{kind}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + bytes(count))
