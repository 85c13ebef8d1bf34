"""Seconds and peak memory of a step: latents, images, hidden units, and the features of a dictionary.

    python benchmarks/scaling.py [--parts networks dictionaries]

One of three sizes varies: 50 to 20,000 latents, 100 to 10,000 images, 400 to 4,000 hidden units. The others are those
of 784-400-50 with batches of 200. In each round, a product of two square float32 matrices runs beside the contestants.
The floating-point operations of a step, those of its matrix products only, are reported as a fraction of the rate of
this product. A fraction of 1 is a step that only multiplies, as fast as the machine can.

Dictionaries of 1,024 to 16,384 features have 768 dimensions and batches of 1,024. They are compared with the TopK
autoencoder of `dictionary.py`.

Memory is measured in a separate process that trains one contestant. On a GPU it is the most that PyTorch's allocator
gave out, or keeps reserved. On a CPU it is the size of weights, gradients, Adam's moments and minibatch, plus the rise
of resident memory in a step (Linux only), with large blocks returned to the system as they are freed.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dictionary
import measure
import torch
from contestants import BY_HAND, CONTESTANTS, PIXELS, SHAPE, Contestant, Place, Setting
from step import steps_per_turn, turn

from vsc_pyro._devices import resolve_device

ENGINES = ("vsc_pyro", "vsc_pyro, compiled", BY_HAND)
MATMUL = "float32 matrix product"
AXES = {
    "latent_dim": (50, 200, 1000, 5000, 20_000),
    "batch_size": (100, 300, 1000, 3000, 10_000),
    "hidden": (400, 1000, 2000, 4000),
}
FEATURES = (1024, 4096, 16_384)
DICTIONARIES = ("refined once", "refined once, compiled", dictionary.BY_HAND)
_MATRIX = {"cpu": 2048, "cuda": 8192}
_MEMORY_STEPS = 3
_PARTS = ("networks", "dictionaries")


def settings(quick: bool) -> list[Setting]:
    if quick:
        return [Setting(latent_dim=3, hidden=8, batch_size=1000)]
    return list(dict.fromkeys(Setting(**{axis: value}) for axis, values in AXES.items() for value in values))


def dictionary_sizes(quick: bool) -> list[dictionary.Size]:
    return [dictionary.QUICK] if quick else [dictionary.Size(features=number) for number in FEATURES]


def contestant_of(name: str, sizes: Sequence[Any], place: Place) -> tuple[Contestant, torch.Tensor, int]:
    """Return a contestant, a minibatch and the number of weights."""
    if name in DICTIONARIES:
        size = dictionary.Size(*sizes)
        built = dictionary.contestants()[name](size, place)
        x = torch.randn(size.batch_size, size.dim, device=place.device)
        heads = 1 if name == dictionary.BY_HAND else 2
        return built, x, (1 + heads) * size.dim * size.features
    setting = Setting(*sizes)
    widths = (PIXELS, setting.hidden, setting.heads * setting.latent_dim)
    back = (setting.latent_dim, setting.hidden, PIXELS)
    weights = sum((a + 1) * b for sizes in (widths, back) for a, b in itertools.pairwise(sizes))
    x = torch.rand(setting.batch_size, *SHAPE, device=place.device).round()
    return CONTESTANTS[name](setting, place), x, weights


def resident(line: str) -> int:
    """Return bytes of resident memory: the present ``"VmRSS"``, or ``"VmHWM"``, the highest since its last reset."""
    found = re.search(rf"{line}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1])


def peak_memory(name: str, sizes: Sequence[Any], place: Place) -> int | None:
    """Return the peak memory of steps in bytes, or None if unknown; this process should do nothing else."""
    (step, scope), x, weights = contestant_of(name, sizes, place)
    with scope():
        step(x)
    gc.collect()
    if place.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place.device)
    elif Path("/proc/self/clear_refs").exists():
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
    else:
        return None
    with scope():
        for _ in range(_MEMORY_STEPS):
            step(x)
    if place.device.type == "cuda":
        most = torch.cuda.max_memory_allocated(place.device)
        torch.cuda.empty_cache()
        # The memory of a CUDA graph is reserved, and does not count as allocated while the graph is replayed.
        return max(most, torch.cuda.memory_reserved(place.device))
    return 4 * (4 * weights + x.numel()) + max(0, resident("VmHWM") - before)


def in_own_process(name: str, sizes: Sequence[Any], place: Place) -> int | None:
    """Return `peak_memory` of a new process."""
    order = json.dumps([name, sizes, str(place.device), place.inductor, torch.get_num_threads()])
    # Otherwise glibc keeps freed blocks, and resident memory does not rise in the next step.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--memory-of", order]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def square_product(device: torch.device, size: int) -> measure.Run:
    a, b = torch.randn(2, size, size, device=device).unbind()
    return partial(torch.mm, a, b, out=torch.empty_like(a))


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    options = measure.parser(__doc__, rounds=10)
    options.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS)
    options.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    options.add_argument("--memory-of", help="measure the memory of one contestant in this process (internal)")
    args = options.parse_args(argv)
    if args.memory_of:
        name, sizes, device, inductor, threads = json.loads(args.memory_of)
        torch.set_num_threads(threads)
        print(json.dumps(peak_memory(name, sizes, Place(resolve_device(device), inductor))))
        return None
    session = measure.Session("scaling", args)
    session.record["data"] = "random pixels"  # times do not depend on the data
    place = Place(session.device, inductor=not args.quick)
    size = 64 if args.quick else _MATRIX[session.device.type]
    product = session.timed(square_product(session.device, size))
    measured = () if args.no_memory else ENGINES[:1] if args.quick else ENGINES
    for setting in settings(args.quick) if "networks" in args.parts else ():
        built = session.available({name: partial(CONTESTANTS[name], setting, place) for name in ENGINES})
        x = torch.rand(setting.batch_size, *SHAPE, device=session.device).round()
        repeats = 1 if args.quick else steps_per_turn(setting)
        result = session.compare(
            f"one step, {setting}",
            {name: turn(session, contestant, [x], repeats) for name, contestant in built.items()} | {MATMUL: product},
            [BY_HAND],
            setting=setting._asdict(),
            flops=setting.flops,
            matrix_size=size,
        )
        add_rates_and_memory(result["contestants"], setting, place, size, measured)
    for sizes in dictionary_sizes(args.quick) if "dictionaries" in args.parts else ():
        compare_dictionaries(session, sizes, place, () if args.no_memory else DICTIONARIES[: 1 if args.quick else None])
    return session.finish()


def compare_dictionaries(
    session: measure.Session, size: dictionary.Size, place: Place, measured: Sequence[str]
) -> None:
    """Print and record seconds of a step of dictionaries, and the peak memory of those in `measured`."""
    makers = {name: partial(contestant_of, name, size, place) for name in DICTIONARIES}
    built = session.available(makers)
    result = session.compare(
        f"one step, {size.dim} dimensions, {size.features} features, batch {size.batch_size}",
        {name: session.timed(partial(c.step, x), 1, c.scope) for name, (c, x, _) in built.items()},
        [dictionary.BY_HAND],
        size=size._asdict(),
    )
    rows = []
    for name, found in result["contestants"].items():
        memory = found["peak_memory_bytes"] = in_own_process(name, size, place) if name in measured else None
        rows.append([name, "not measured" if memory is None else f"{memory / 1e6:.3g}"])
    measure.table("peak memory", ["", "MB"], rows)


def add_rates_and_memory(
    contestants: dict[str, Any], setting: Setting, place: Place, matrix_size: int, measured: Sequence[str]
) -> None:
    """Print and record the fraction of the machine's rate, and the peak memory of the engines in `measured`."""
    product = contestants[MATMUL]
    rates = [2 * matrix_size**3 / seconds for seconds in product["rounds"]]
    product["flops_per_second"] = measure.summary(rates)
    rows = []
    for name, found in contestants.items():
        if name == MATMUL:
            continue
        pairs = zip(found["rounds"], rates, strict=True)
        found["fraction_of_peak"] = measure.summary(setting.flops / seconds / rate for seconds, rate in pairs)
        memory = found["peak_memory_bytes"] = in_own_process(name, setting, place) if name in measured else None
        cell = "not measured" if memory is None else f"{memory / 1e6:.3g}"
        rows.append([name, measure.spread(found["fraction_of_peak"]), cell])
    rate = measure.spread(product["flops_per_second"], 1e-9)
    measure.table(
        f"a step of {setting.flops / 1e9:.3g} GFLOP; rate of the machine {rate} GFLOP/s",
        ["median (quartiles) of rounds", "fraction of that rate", "peak memory, MB"],
        rows,
    )


if __name__ == "__main__":
    main()
