"""`Losses`: the losses of an epoch, read from the device without waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vsc_pyro.training.parallel import total


class Arrival(Protocol):
    """A tensor on its way to the host. `values` is valid once `is_here` returns True, or after `wait`."""

    values: Tensor

    def is_here(self) -> bool: ...

    def wait(self) -> None: ...


class Copy:
    """The `Arrival` of a tensor of any device. A tensor of the CPU has arrived at once."""

    def __init__(self, values: Tensor) -> None:
        # A copy that does not block goes to pinned memory, which the GPU fills while the host continues.
        self.values = values.to("cpu", non_blocking=True)
        self._event: torch.cuda.Event | None = None
        if values.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(values.device))

    def is_here(self) -> bool:
        return self._event is None or self._event.query()

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()


class Reading(NamedTuple):
    """Losses of successive steps, summed over processes.

    Attributes:
        values: one loss for each step.
        num_data: number of data in these steps.
        offset: number of earlier steps in the epoch.
    """

    values: Tensor
    num_data: int
    offset: int


class Losses:
    """Collect the losses of an epoch, step by step.

    Args:
        send: starts the copy of a tensor to the host.
    """

    def __init__(self, send: Callable[[Tensor], Arrival] = Copy) -> None:
        self._send = send
        self._recent: list[Tensor] = []
        self._recent_data = 0
        self._num_steps = 0
        self._pending: deque[tuple[Arrival, int, int]] = deque()
        self._readings: list[Reading] = []

    def add(self, loss: Tensor, num_data: int) -> None:
        """Add the loss of the next step, a 0-d tensor on the device, the sum over `num_data` data."""
        self._recent.append(loss)
        self._recent_data += num_data

    def read(self, wait: bool = False) -> Iterator[Reading]:
        """Send the recent losses to the host and yield those that have arrived, in order; with `wait`, all of them."""
        if self._recent:
            self._pending.append((self._send(total(torch.stack(self._recent))), self._recent_data, self._num_steps))
            self._num_steps += len(self._recent)
            self._recent, self._recent_data = [], 0
        while self._pending and (wait or self._pending[0][0].is_here()):
            arrival, num_data, offset = self._pending.popleft()
            arrival.wait()
            self._readings.append(Reading(arrival.values, num_data, offset))
            yield self._readings[-1]

    def mean(self) -> float:
        """Return the mean loss per datum over all readings."""
        values = torch.cat([reading.values for reading in self._readings])
        return float(values.double().sum()) / sum(reading.num_data for reading in self._readings)
