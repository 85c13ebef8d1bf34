r"""The codes of data under a trained `VAE`: `codes`.

A spike-and-slab posterior says of each latent of a datum with what probability :math:`\gamma_j` it is on, and about
which value it then is: the slab's centre :math:`c_j` and scale. The hard code keeps what is on,

.. math:: z_j = c_j \;\text{where}\; \gamma_j > t, \qquad z_j = 0 \;\text{elsewhere,}

with exact zeros, and t = 1/2 unless said otherwise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, TypeVar, overload

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.data import DataLoader

from vsc_pyro._arguments import choice, natural_int
from vsc_pyro._seeding import seeded
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import centre, inclusion_of, scale_of, slab_of
from vsc_pyro.models.data_checks import in_memory
from vsc_pyro.models.vae import VAE
from vsc_pyro.training.batches import data_of, naming_batch

if TYPE_CHECKING:
    import scipy.sparse

T = TypeVar("T")
_ROWS_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    r"""Codes of N data in J latents, on the CPU; what `codes` returns.

    Attributes:
        inclusion: :math:`\gamma`, the probability that a latent is on, shape ``(N, J)``. Of a posterior without an atom
            at zero 1 everywhere; of a point 1 where it is not zero.
        centre: of the slab, the value of a latent given that it is on, shape ``(N, J)``: its mean, or the location of
            a Cauchy slab. Of a dense posterior its mean, of a point its value.
        scale: of the slab, shape ``(N, J)``: the family's parameter (of a Normal slab the standard deviation, of a
            Laplace one :math:`1 / \sqrt 2` of it). Of a point 0.
        threshold: the inclusion above which the hard code has a latent on.
    """

    inclusion: Tensor
    centre: Tensor
    scale: Tensor
    threshold: float = 0.5

    @property
    def hard(self) -> Tensor:
        """The hard sparse code, shape ``(N, J)``: `centre` where `inclusion` exceeds `threshold`, exactly 0 elsewhere.

        Of a dense posterior this is `centre`.
        """
        return torch.where(self.inclusion > self.threshold, self.centre, 0)

    def as_csr(self) -> scipy.sparse.csr_array:
        """The hard code as a SciPy matrix of compressed rows, which holds only what is not zero."""
        from scipy.sparse import csr_array

        return csr_array(self.hard.numpy())

    def __len__(self) -> int:
        return len(self.inclusion)

    def __repr__(self) -> str:
        num, latents = self.inclusion.shape
        on = float((self.inclusion > self.threshold).sum(1).double().mean()) if num else 0.0
        return f"Codes({num} data, {latents} latents, {on:.2f} on a datum at threshold {self.threshold:g})"


@overload
def codes(
    model: VAE,
    data: Dataset | Tensor | np.ndarray | DataLoader,
    *,
    threshold: float = ...,
    seed: int = ...,
    format: Literal["tensors"] = ...,
) -> Codes: ...


@overload
def codes(
    model: VAE,
    data: Dataset | Tensor | np.ndarray | DataLoader,
    *,
    threshold: float = ...,
    seed: int = ...,
    format: Literal["csr"],
) -> scipy.sparse.csr_array: ...


def codes(
    model: VAE,
    data: Dataset | Tensor | np.ndarray | DataLoader,
    *,
    threshold: float = 0.5,
    seed: int = 0,
    format: Literal["tensors", "csr"] = "tensors",
) -> Codes | scipy.sparse.csr_array:
    """The codes of `data`: inclusion, centre and scale of the slab, and the hard sparse code with exact zeros.

    Data are encoded in evaluation mode, a thousand at a time; the model's mode and the caller's random state are left
    as they were.

    Args:
        model: a trained `VAE`.
        data: a `Dataset`, any array or tensor of shape ``(N, ...)``, or a `DataLoader` of tensors or of tuples of which
            the first entry is the data. Codes are in the order of the data, of a loader in the order in which it gives
            them: build it with ``shuffle=False`` to keep that of its data set.
        threshold: the inclusion above which the hard code has a latent on, from 0 to below 1.
        seed: of dynamic binarisation, and of a loader that shuffles by torch's own generator.
        format: ``"tensors"`` for a `Codes`; ``"csr"`` for the hard code alone as a `scipy.sparse.csr_array` of shape
            ``(N, J)``, of which no dense array is held.

    Raises:
        ValueError: data that do not fit the model, or a loader without a batch; a threshold outside [0, 1); an unknown
            format; codes that are not finite.

    Example:
        >>> test = vsc.datasets.load("digits").test
        >>> model = vsc.VAE(vsc.SpikeSlabEncoder(64, 9), vsc.BernoulliDecoder(9, 64), vsc.SpikeSlabPrior(9))
        >>> found = vsc.codes(model, test)
        >>> found.inclusion.shape, found.hard.shape
        (torch.Size([360, 9]), torch.Size([360, 9]))
        >>> vsc.codes(model, test, format="csr").shape
        (360, 9)
    """
    if not isinstance(threshold, numbers.Real) or not 0 <= threshold < 1:
        raise ValueError(f"threshold must be a probability from 0 to below 1, got {threshold!r}")
    keep = choice("format", format, {"tensors": lambda part: part, "csr": Codes.as_csr})

    def code(posterior: Distribution) -> Codes | scipy.sparse.csr_array:
        slab = slab_of(posterior)
        parts = (inclusion_of(posterior), centre(slab), scale_of(slab))
        return keep(Codes(*(checked_codes(part) for part in parts), float(threshold)))

    parts = in_batches(model, data, code, seed)
    if format == "csr":
        from scipy.sparse import vstack

        return vstack(parts, format="csr")
    return Codes(*(torch.cat([getattr(part, name) for part in parts]) for name in _FIELDS), float(threshold))


_FIELDS = ("inclusion", "centre", "scale")


def checked_codes(values: Tensor) -> Tensor:
    """Numbers of codes ``(B, ...)`` as ``(B, J)`` on the CPU, or `ValueError` where they are not finite."""
    values = values.flatten(1).cpu()
    if not values.isfinite().all():
        raise ValueError("the encoder gives codes that are NaN or infinite; the model has diverged, train it anew")
    return values


def in_batches(
    model: VAE, data: Dataset | Tensor | np.ndarray | DataLoader, summary: Callable[[Distribution], T], seed: int
) -> list[T]:
    """The `summary` of the posterior of each batch of data, in their order and in evaluation mode.

    Raises:
        ValueError: data that do not fit the model, or a loader without a batch.
    """
    seed = natural_int("seed", seed)
    with model.evaluating(), contextlib.ExitStack() as stack:
        if isinstance(data, DataLoader):
            stack.enter_context(seeded(seed, torch.device("cpu")))
            batches = _loaded(model, data)
        else:
            batches = _held(model, in_memory(data), seed)
        found = [summary(model.encoder(x.to(model.reference))) for x in batches]
    if not found:
        raise ValueError("data must be a DataLoader with at least one batch, got none; take a smaller batch_size")
    return found


def _held(model: VAE, data: Dataset, seed: int) -> Iterator[Tensor]:
    model.check_data(data.images)
    generator = torch.Generator(data.images.device).manual_seed(seed)
    return (data.draw(rows, generator) for rows in torch.arange(len(data)).split(_ROWS_AT_ONCE))


def _loaded(model: VAE, loader: DataLoader) -> Iterator[Tensor]:
    for number, batch in enumerate(loader, start=1):
        with naming_batch(str(number)):
            x = data_of(batch)
            model.check_data(x)
        yield from x.split(_ROWS_AT_ONCE)
