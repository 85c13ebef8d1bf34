"""Contestants in JAX, each in a process and an environment of its own, which need no PyTorch; see `jax_worker.py`.

python -m venv jax-environment && jax-environment/bin/pip install numpyro optax
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from contestants import INCLUSION, LR, TEMPERATURE, Place, Setting, hand_written
from torch import Tensor

NUMPYRO, BY_HAND = "NumPyro", "JAX"
_WORKER = Path(__file__).with_name("jax_worker.py")


class Worker:
    """A process that holds one contestant.

    Args:
        python: interpreter of an environment with jax, numpyro and optax.
        name: `NUMPYRO` or `BY_HAND`.
        setting: what it trains; its weights are those of `contestants.hand_written`.
        images: grey levels, shape ``(N, ...)``.

    Raises:
        UnavailableError: NumPyro for codes with spikes.
    """

    def __init__(self, python: Path, name: str, setting: Setting, images: Tensor) -> None:
        if name == NUMPYRO and not setting.dense:
            raise measure.UnavailableError("has no spike-and-slab site")
        self._name = name
        self._net = hand_written(setting, Place(torch.device("cpu")))
        self._images = images.cpu().flatten(1)
        self._size = setting.batch_size
        constants = {"lr": LR, "inclusion": INCLUSION, "temperature": TEMPERATURE}
        start = measure.temporary_folder() / "start.npz"
        weights = {key: value.detach().numpy() for key, value in self._net.state_dict().items()}
        np.savez(start, images=self._images.numpy(), setting=json.dumps(setting._asdict() | constants), **weights)
        # XLA takes a thread for each processor that it may run on.
        allowed = sorted(os.sched_getaffinity(0))[: torch.get_num_threads()]
        self._process = subprocess.Popen(
            [python, _WORKER, start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            preexec_fn=partial(os.sched_setaffinity, 0, allowed),
        )

    def ask(self, work: str, value: int = 0) -> Any:
        """Return the worker's answer."""
        pipes = self._process.stdin, self._process.stdout
        assert pipes[0] is not None
        assert pipes[1] is not None
        pipes[0].write(json.dumps({"work": work, "name": self._name, "value": value}) + "\n")
        pipes[0].flush()
        answer = pipes[1].readline()
        if not answer:
            raise RuntimeError(
                f"the process of {self._name} ended with status {self._process.wait()}; its error is above"
            )
        return json.loads(answer)

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def check_loss(self, draws: int = 200) -> dict[str, float]:
        """Return the mean losses of a minibatch by the worker and by hand in PyTorch, with their standard errors.

        Raises:
            RuntimeError: they differ by more than 3 standard errors, so that it is another loss.
        """
        x = self._images[: self._size].round()
        torch.manual_seed(1)
        with torch.no_grad():
            own = np.array([float(self._net.loss(x)) for _ in range(draws)])
        other = np.array(self.ask("losses", draws))
        error = math.hypot(*(np.std(values) / draws**0.5 for values in (own, other)))
        found = {"loss": float(other.mean()), "by hand": float(own.mean()), "standard error": error}
        if abs(found["loss"] - found["by hand"]) > 3 * error:
            raise RuntimeError(f"{self._name} has another loss: {found}")
        return found

    def timed(self, work: str, value: int = 1) -> measure.Run:
        """Return a run of the worker's "steps" (`value` of them) or "epoch"."""

        def run() -> measure.Timing:
            seconds, processor = self.ask(work, value)
            return measure.Timing(seconds / value, processor / value)

        return run


@contextlib.contextmanager
def workers(
    session: measure.Session, python: Path | None, setting: Setting, images: Tensor
) -> Iterator[dict[str, Worker]]:
    """Start the workers that can run here, whose losses are those of the other contestants, and end them on leaving.

    Their versions and losses are recorded.
    """
    ends = contextlib.ExitStack()

    def start(name: str) -> Worker:
        if python is None or session.device.type != "cpu":
            raise measure.UnavailableError("needs --jax PYTHON, and the CPU")
        worker = Worker(python, name, setting, images)
        ends.callback(worker.end)
        session.record["environment"].setdefault("jax", worker.ask("versions"))
        losses = worker.check_loss(20 if session.quick else 200)
        session.record.setdefault("losses", []).append({"contestant": name, "dense": setting.dense, **losses})
        return worker

    with ends:
        yield session.available({name: partial(start, name) for name in (NUMPYRO, BY_HAND)})
