"""Checks of the batches that a `DataLoader` or a stream yields."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Distribution

from vsc_pyro.datasets.numbers import as_numbers
from vsc_pyro.models.data_checks import are_in_support, check_support, must_be_inside, remedy_of
from vsc_pyro.models.priors import Prior

if TYPE_CHECKING:
    from vsc_pyro.models.vae import VAE


def data_of(batch: object, remedy: str = "let the DataLoader's dataset or collate_fn return that") -> Tensor:
    """Return the data of a batch: the batch itself, or the first entry of a tuple or list."""
    x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(x, Tensor) and hasattr(x, "__array__"):
        # A frame's columns are contiguous, and the products of such a layout are rounded differently.
        x = as_numbers(x).contiguous()
    if not isinstance(x, Tensor) or x.ndim < 2 or not len(x):
        got = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(batch).__name__}"
        raise ValueError(
            f"batches must be tensors of shape (B, ...), or tuples or lists whose first entry is one, got {got}; "
            f"{remedy}"
        )
    return as_numbers(x).detach()


@contextlib.contextmanager
def naming_batch(which: str) -> Iterator[None]:
    """Name the batch, such as "12 of the stream", in every `ValueError` within the context."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"batch {which}: {error}") from error


class EpochChecks:
    """Checks of the batches of an epoch. On a GPU their results are read at the end, so no batch waits.

    Args:
        model: the model to check for.
        likelihood: a likelihood of the model, on its device.
    """

    def __init__(self, model: VAE, likelihood: Distribution) -> None:
        self.model = model
        self._likelihood = likelihood
        self._are_inside: list[Tensor] = []
        self._ranges: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Check a batch; raise `ValueError` at once if it is on the CPU and outside the support of the likelihood."""
        if x.is_cuda:
            finite = (x.isfinite() | x.isnan()) if self.model.missing is not None else x.isfinite()
            self._are_inside.append(finite.all() & are_in_support(x, self._likelihood))
        else:
            check_support(x, self._likelihood, x)
        whole = x if self.model.missing is None else self.model.missing.filled(x)
        self._ranges.append(torch.stack(whole.aminmax()))

    def check(self, which: Callable[[int], str]) -> None:
        """Raise `ValueError` for the first batch that was outside the support; `which` names it by its number."""
        are_inside = torch.stack(self._are_inside).tolist() if self._are_inside else []
        if not all(are_inside):
            with naming_batch(which(are_inside.index(False) + 1)):
                raise ValueError(f"{must_be_inside(self._likelihood)}, and finite; {remedy_of(self._likelihood)}")

    def check_range(self) -> None:
        """Tell the range of all data to priors that were initialised from the sample."""
        low, high = torch.stack(self._ranges).T
        for module in self.model.modules():
            if isinstance(module, Prior):
                module.check_range(low.min(), high.max())
