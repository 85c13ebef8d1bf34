"""Shared by the benchmarks: options, MNIST or loudly something else, interleaved rounds, tables and JSON.

Contestants of a comparison run in one process, in rounds, in an order drawn anew for every round, so that whatever
else the machine does meets all of them. Reported are medians and quartiles over rounds, of seconds and of the ratios
*within* a round, which that disturbs less than the seconds themselves.
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
from typing import Any

import numpy as np
import pyro
import torch

import vsc_pyro as vsc
from vsc_pyro._arguments import positive_int
from vsc_pyro._files import expanded, replacing
from vsc_pyro.datasets import Split, default_root
from vsc_pyro.training.devices import resolve_device

RESULTS = Path(__file__).parent / "results"
_MNIST_SIZES, _QUICK_SIZES = (60_000, 10_000), (120, 120)

Run = Callable[[], float]
"""Runs a contestant once; returns the seconds that count."""
Scope = Callable[[], contextlib.AbstractContextManager]
"""Makes what a contestant has to run within."""


class UnavailableError(Exception):
    """Why a contestant cannot take part here."""


def parser(description: str, rounds: int | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have; `rounds` is None for those that compare no times."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="auto", help="cpu, cuda, or auto: the GPU where there is one")
    options.add_argument("--threads", type=whole, help="of torch; default: as it starts")
    if rounds is not None:
        options.add_argument("--rounds", type=whole, help=f"of all contestants; default: {rounds}, with --quick 2")
    options.add_argument(
        "--data-root", type=expanded, help="folder that holds MNIST/raw; random pixels where it does not"
    )
    options.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    options.add_argument(
        "--output", type=expanded, help="JSON file; default: results/NAME-DEVICE.json here, with --quick none"
    )
    options.set_defaults(full_rounds=rounds, **({"rounds": None} if rounds is None else {}))
    return options


def whole(text: str) -> int:
    """A whole number of at least 1, for `argparse`."""
    try:
        return positive_int("the value", int(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}") from error


class Session:
    """One run of a benchmark: where it runs, and what it has found so far.

    Args:
        name: of the benchmark, and of its file of results.
        args: the options as parsed.

    Attributes:
        device, rounds, quick: as the options say.
        record: what is written: ``environment``, ``arguments``, ``data``, ``left_out`` with why, and ``results``,
            one entry for each comparison.
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
        # Without paths: what is committed says nothing of whose machine it was but its make.
        options = {k: v for k, v in vars(args).items() if k not in ("data_root", "output", "full_rounds")}
        self.record: dict[str, Any] = {
            "benchmark": name,
            "environment": environment(self.device),
            "arguments": options | {"rounds": self.rounds},
            "data": None,
            "left_out": {},
            "results": [],
        }
        told = self.record["environment"]
        print(
            f"{name}: {told['device']}, {told['threads']} threads of {told['cores']} cores, load {told['load'][0]:.1f}"
        )

    def mnist(self) -> tuple[Path, Split]:
        """A folder with MNIST's files, and what they hold; random pixels in files like them where there are none."""
        root = default_root() if self._root is None else self._root
        present = (root / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file()
        self.record["data"] = "MNIST" if present and not self.quick else "random pixels"
        if self.record["data"] != "MNIST":
            if not self.quick:
                shout(f"no MNIST in {root}: RANDOM PIXELS of the same shape; fit for timing only")
            root = temporary_folder()
            counts = _QUICK_SIZES if self.quick else _MNIST_SIZES
            write_random_mnist(root / "MNIST" / "raw", *counts)
        return root, vsc.datasets.load("mnist", root, download=False)

    def available(self, builders: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """Build the contestants, without those that cannot take part; which and why is printed and recorded."""
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
        """A contestant that does `work` so many times within a context; the seconds of one, without the context's."""

        def run() -> float:
            with scope():
                synchronize(self.device)
                start = time.perf_counter()
                for _ in range(repeats):
                    work()
                synchronize(self.device)
                return (time.perf_counter() - start) / repeats

        return run

    def compare(
        self,
        title: str,
        contestants: Mapping[str, Run],
        baselines: Sequence[str] = (),
        rounds: int | None = None,
        **about: Any,
    ) -> dict[str, Any]:
        """Run contestants in rounds, print their times and their ratios to the baselines, and record both."""
        first, seconds = interleaved(contestants, rounds or self.rounds)
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
        self.write()  # so that nothing is lost if a later comparison fails
        return result

    def finish(self) -> dict[str, Any]:
        """Write what was found, and return it."""
        if (output := self.write()) is not None:
            print(f"\nwritten: {output}")
        return self.record

    def write(self) -> Path | None:
        """Write what was found so far; returns the file, None with `--quick` and no `--output`."""
        self.record["environment"]["load_at_end"] = os.getloadavg()
        output = self._output
        if output is None and not self.quick:
            output = RESULTS / f"{self.name}-{_slug(self.device)}.json"
        if output is not None:
            with replacing(output) as temporary:
                temporary.write_text(json.dumps(self.record, indent=1) + "\n")
        return output


def environment(device: torch.device) -> dict[str, Any]:
    """The machine, and the versions of what runs on it."""
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
    """Wait for what the device has been given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(contestants: Mapping[str, Run], rounds: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Run each contestant once untimed, then all of them in every round, in random order.

    Returns:
        Seconds of the first calls as a whole, compilation included, and seconds that count, by round.
    """
    first, seconds = {}, {name: [] for name in contestants}
    for name, run in contestants.items():
        start = time.perf_counter()
        run()
        first[name] = time.perf_counter() - start
    names, order = list(contestants), random.Random(0)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            seconds[name].append(contestants[name]())
    return first, seconds


def summary(values: Iterable[float]) -> dict[str, float]:
    """Median, quartiles, and of how many."""
    values = list(values)
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {"median": median, "q1": low, "q3": high, "n": len(values)}


def spread(found: Mapping[str, float], factor: float = 1.0) -> str:
    """A summary as text: ``5.1 (4.9 to 5.3)``."""
    low, median, high = (f"{factor * found[key]:.3g}" for key in ("q1", "median", "q3"))
    return f"{median} ({low} to {high})"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text under their heads, the first column left, the others right aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    print(f"\n{title}")
    for row in (head, *rows):
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *others]).rstrip(), flush=True)


def temporary_folder() -> Path:
    """A folder that is gone when the process ends."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def shout(text: str) -> None:
    """Print what nobody may overlook."""
    print(f"\n*** {text} ***", flush=True)


def write_random_mnist(folder: Path, num_train: int, num_test: int) -> None:
    """Files of MNIST's format, of random pixels."""
    folder.mkdir(parents=True)
    bytes_ = np.random.default_rng(0)
    for kind, count in (("train", num_train), ("t10k", num_test)):
        images = struct.pack(">4i", 2051, count, 28, 28) + bytes_.bytes(count * 784)
        (folder / f"{kind}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{kind}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + bytes(count))
