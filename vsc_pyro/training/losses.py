"""`Losses`: those of an epoch, read back from the device without waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vsc_pyro.training.parallel import total


class Arrival(Protocol):
    """A tensor on its way to the host: `values` may be looked at once it `is_here`, or after `wait`."""

    values: Tensor

    def is_here(self) -> bool: ...

    def wait(self) -> None: ...


class Copy:
    """The `Arrival` of a tensor of any device; one of the CPU is here at once."""

    def __init__(self, values: Tensor) -> None:
        # Without blocking torch copies into pinned memory, which a GPU fills while the host goes on.
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


class Seen(NamedTuple):
    """Losses that have arrived: of how many data, after how many steps of the epoch, summed over processes."""

    values: Tensor
    num_data: int
    offset: int


class Losses:
    """Losses of an epoch, step by step.

    Args:
        send: sets a tensor on its way to the host.
    """

    def __init__(self, send: Callable[[Tensor], Arrival] = Copy) -> None:
        self._send = send
        self._recent: list[Tensor] = []
        self._recent_data = 0
        self._num_steps = 0
        self._pending: deque[tuple[Arrival, int, int]] = deque()
        self._seen: list[Seen] = []

    def add(self, loss: Tensor, num_data: int) -> None:
        """The loss of the next step, a 0-d tensor on the device, and of how many data it is the sum."""
        self._recent.append(loss)
        self._recent_data += num_data

    def look(self, wait: bool = False) -> Iterator[Seen]:
        """Send the losses added since the last look; give those that are here, in order, or `wait` for all of them."""
        if self._recent:
            self._pending.append((self._send(total(torch.stack(self._recent))), self._recent_data, self._num_steps))
            self._num_steps += len(self._recent)
            self._recent, self._recent_data = [], 0
        while self._pending and (wait or self._pending[0][0].is_here()):
            arrival, num_data, offset = self._pending.popleft()
            arrival.wait()
            self._seen.append(Seen(arrival.values, num_data, offset))
            yield self._seen[-1]

    def mean(self) -> float:
        """Of what has been seen, by the datum."""
        values = torch.cat([seen.values for seen in self._seen])
        return float(values.double().sum()) / sum(seen.num_data for seen in self._seen)
