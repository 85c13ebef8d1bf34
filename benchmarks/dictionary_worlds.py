"""Data of `dictionaries.py`: worlds of known features, and real vectors. The peers' Python imports it too.

Batches of a world come from `vsc_pyro.datasets.features`, whose seed is the seed of the run. Several methods read the
same batches, and drawing them costs as much as training on them, so on a CPU the first reader stores them in a file,
in half precision: the rounding error is below a hundredth of the noise. Word vectors are shuffled anew in every epoch;
a seeded tenth of the rows is held out for tests and another one for validation.
"""

from __future__ import annotations

import fcntl
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import vsc_pyro as vsc
from vsc_pyro._files import replacing

WORLDS = ("hierarchical", "correlated", "independent")
REAL = {"glove100d": "X"}
VALIDATION, TEST, LABELLED = 1, 2, 3  # seeds of samples


class Size(NamedTuple):
    """Sizes of a world (features are 0 for real vectors), of a dictionary for it, and of batches and tests."""

    features: int
    dim: int
    atoms: int
    expected_active: float
    batch_size: int = 1024
    num_test: int = 20_000


SIZES = {
    "small": Size(512, 64, 128, 5.0),
    "large": Size(2048, 256, 512, 8.0),
    "words": Size(0, 100, 512, 8.0),
    "tiny": Size(24, 8, 6, 2.0, 64, 300),
    "tiny words": Size(0, 100, 16, 2.0, 64, 300),
}


class Cell(NamedTuple):
    """One training run: a method with its settings, on a world, for a number of steps, from a seed."""

    method: str
    world: str
    size: str
    steps: int
    seed: int
    settings: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        """The name of the cell's file."""
        settings = [f"{key}={value:g}" for key, value in self.settings]
        words = [self.world, self.size, self.method, *settings, f"{self.steps} steps", f"seed {self.seed}"]
        return "-".join(words).replace(",", "").replace(" ", "_")

    @property
    def sizes(self) -> Size:
        return SIZES[self.size]

    def scaled(self, setting: str) -> float:
        """Return a setting that is stated in units of the world's expected number of features."""
        return dict(self.settings)[setting] * self.sizes.expected_active


class Machine(NamedTuple):
    """Folder of stored batches, folder that contains real vectors, and device to train on."""

    streams: Path
    root: Path | None
    device: str


def source(cell: Cell, machine: Machine) -> World | Words:
    """Return the data of a cell."""
    return Words(cell, machine) if cell.world in REAL else World(cell, machine)


class World:
    """A world of known features."""

    def __init__(self, cell: Cell, machine: Machine) -> None:
        self.cell, self.size, self.device = cell, cell.sizes, machine.device
        self.features = vsc.datasets.features(
            self.size.features,
            self.size.dim,
            expected_active=self.size.expected_active,
            structure=cell.world,
            batch_size=self.size.batch_size,
            seed=cell.seed,
            device=machine.device,
        )
        self.dictionary = self.features.dictionary
        self._path = stored(cell, machine.streams)

    def batches(self) -> Iterator[Tensor]:
        return self._read() if self.device == "cpu" else iter(self.features)

    def _read(self) -> Iterator[Tensor]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._path.is_file():
                self._store()
        for batch in np.load(self._path, mmap_mode="r"):
            yield torch.from_numpy(batch.astype(np.float32))

    def _store(self) -> None:
        shape = (self.cell.steps, self.size.batch_size, self.size.dim)
        with replacing(self._path) as temporary:
            array = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
            for row, batch in zip(array, self.features, strict=False):
                row[:] = batch.numpy()
            array.flush()

    def sample(self, seed: int) -> vsc.Dataset:
        return self.features.sample(self.size.num_test, seed=seed)


def stored(cell: Cell, folder: Path) -> Path:
    """Return the file of a world's batches."""
    return folder / f"{cell.world}-{cell.size}-{cell.steps}-{cell.seed}.npy"


class Words:
    """Real vectors, divided by one number, so that their mean norm is the root of the number of dimensions."""

    dictionary = None

    def __init__(self, cell: Cell, machine: Machine) -> None:
        self.device = machine.device
        x = torch.from_numpy(np.load(real_file(cell.world, machine.root))[REAL[cell.world]]).float()
        x = x[torch.from_numpy(np.random.default_rng(0).permutation(len(x)))]
        tenth = len(x) // 10
        scale = math.sqrt(x.shape[1]) / x[2 * tenth :].norm(dim=1).mean()
        self._test, self._validation, self._train = (scale * x).split([tenth, tenth, len(x) - 2 * tenth])
        self._cell = cell

    def batches(self) -> Iterator[Tensor]:
        random, train = torch.Generator().manual_seed(self._cell.seed), self._train.to(self.device)
        while True:
            order = torch.randperm(len(train), generator=random).to(self.device)
            for rows in order.split(self._cell.sizes.batch_size):
                if len(rows) == self._cell.sizes.batch_size:
                    yield train[rows]

    def sample(self, seed: int) -> vsc.Dataset:
        return vsc.Dataset(self._test if seed == TEST else self._validation)


def real_file(world: str, root: Path | None) -> Path:
    """Return the file of real vectors, which may not exist."""
    return (vsc.datasets.default_root() if root is None else root) / "more" / f"{world}.npz"


class Timed:
    """Batches, and the processor seconds that it took to make them."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._batches = iter(batches)
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        start = time.process_time()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.process_time() - start


def speed(cell: Cell, device: str, seconds: float, batches: Timed, steps: int | None = None) -> dict[str, Any]:
    """Return the processor time of training, `seconds` in all, without that of making the batches.

    On a GPU, where several runs share it, no time is reported.
    """
    if device != "cpu":
        return {}
    own, steps = seconds - batches.seconds, cell.steps if steps is None else steps
    rate = steps * cell.sizes.batch_size / own
    return {"ms_per_step": 1e3 * own / steps, "vectors_per_second": rate, "data_seconds": batches.seconds}


def evaluated(model: Any, data: World | Words, posterior: Any = None) -> dict[str, dict[str, Any]]:
    """Return the figures of a trained dictionary on validation and test data."""
    samples = {"validation": data.sample(VALIDATION), "test": data.sample(TEST)}
    return {
        name: vsc.evaluate_dictionary(model, x, dictionary=data.dictionary, posterior=posterior).as_dict()
        for name, x in samples.items()
    }
