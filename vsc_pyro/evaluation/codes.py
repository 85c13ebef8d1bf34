r"""`codes`: the sparse codes of data under a trained `VAE`.

A spike-and-slab posterior has, for each latent of a datum, the probability :math:`\gamma_j` that the latent is on, and
the centre :math:`c_j` and scale of its slab, the distribution of the latent while it is on. The hard code keeps the
latents that are probably on,

.. math:: z_j = c_j \;\text{if}\; \gamma_j > t, \qquad z_j = 0 \;\text{otherwise,}

with exact zeros; t is 1/2 by default.
"""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.data import DataLoader

from vsc_pyro._arguments import choice, natural_int
from vsc_pyro._seeding import seeded
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import centre, inclusion_logits, inclusion_of, scale_of, slab_of
from vsc_pyro.models.data_checks import in_memory
from vsc_pyro.models.vae import VAE, check_is_vae
from vsc_pyro.training.batch_checks import data_of, naming_batch
from vsc_pyro.training.loaded import Loaded

if TYPE_CHECKING:
    from scipy.sparse import csr_array

T = TypeVar("T")
Encodable = Dataset | Tensor | np.ndarray | DataLoader
_ROWS_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    r"""Codes of N data in J latents, on the CPU; the result of `codes`.

    Attributes:
        inclusion: :math:`\gamma`, the probability that a latent is on, shape ``(N, J)``. Without a spike it is
            1; for a point it is 1 where the value is not zero.
        centre: centre of the slab, shape ``(N, J)``: its mean, or the location of a Cauchy slab. For a dense posterior
            the mean, for a point the value.
        scale: scale parameter of the slab, shape ``(N, J)``: the standard deviation of a Normal slab, that over
            :math:`\sqrt 2` for a Laplace slab, 0 for a point.
        threshold: the hard code has a latent on if its inclusion exceeds this.
    """

    inclusion: Tensor
    centre: Tensor
    scale: Tensor
    threshold: float = 0.5

    @property
    def hard(self) -> Tensor:
        """The hard sparse code, shape ``(N, J)``: `centre` where `inclusion` exceeds `threshold`, exactly 0 elsewhere.

        For a dense posterior this is `centre`.
        """
        return torch.where(self.inclusion > self.threshold, self.centre, 0)

    def as_csr(self) -> csr_array:
        """Return the hard code as a SciPy matrix of compressed rows, which stores the nonzero values only."""
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
    model: VAE, data: Encodable, *, threshold: float = 0.5, seed: int = 0, format: Literal["tensors"] = "tensors"
) -> Codes: ...
@overload
def codes(
    model: VAE, data: Encodable, *, threshold: float = 0.5, seed: int = 0, format: Literal["csr"]
) -> csr_array: ...
def codes(model: VAE, data: Encodable, *, threshold: float = 0.5, seed: int = 0, format: str = "tensors") -> Any:
    """Return the codes of `data`: inclusion, centre and scale of the slab, and the hard sparse code with exact zeros.

    Data are encoded in evaluation mode, a thousand at a time. The model's mode and the caller's random state are
    restored.

    Args:
        model: a trained `VAE`.
        data: a `Dataset`, an array or tensor of shape ``(N, ...)``, or a `DataLoader`. The batches of a loader are
            tensors, or tuples that begin with one. Codes are in the order of the data; those of a loader are in its
            order, so build it with ``shuffle=False``.
        threshold: the hard code has a latent on if its inclusion exceeds this; from 0 to below 1.
        seed: of dynamic binarisation, and of a loader that shuffles.
        format: ``"tensors"`` for a `Codes`; ``"csr"`` for the hard code alone as a `scipy.sparse.csr_array` of shape
            ``(N, J)``, built without a dense array of that shape.

    Raises:
        ValueError: data that do not fit the model, a loader without a batch, a threshold outside [0, 1), an unknown
            format, or codes that are not finite.

    Example:
        >>> import vsc_pyro as vsc
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
    kept = choice("format", format, {"tensors": lambda part: part, "csr": Codes.as_csr})

    def code(posterior: Distribution) -> Codes | csr_array:
        slab = slab_of(posterior)
        inclusion, middle, scale = map(checked_codes, (inclusion_of(posterior), centre(slab), scale_of(slab)))
        return kept(Codes(inclusion, middle, scale, float(threshold)))

    parts: list[Any] = in_batches(model, data, code, seed)
    if format == "csr":
        from scipy.sparse import vstack

        return vstack(parts, format="csr")
    inclusion, middle, scale = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("inclusion", "centre", "scale")
    )
    return Codes(inclusion, middle, scale, float(threshold))


def checked_codes(values: Tensor) -> Tensor:
    """Return numbers of codes ``(B, ...)`` as ``(B, J)`` on the CPU; raise `ValueError` if one is not finite."""
    values = values.flatten(1).cpu()
    if not values.isfinite().all():
        raise ValueError("the encoder gives codes that are NaN or infinite; the model has diverged, train it anew")
    return values


def in_batches(model: VAE, data: Encodable, summary: Callable[[Distribution], T], seed: int) -> list[T]:
    """Return the `summary` of the posterior of each batch of data, in order and in evaluation mode.

    Raises:
        ValueError: data that do not fit the model, or a loader without a batch.
    """
    check_is_vae(model)
    seed = natural_int("seed", seed)
    with model.evaluating(), contextlib.ExitStack() as stack:
        if isinstance(data, DataLoader):
            stack.enter_context(seeded(seed, torch.device("cpu")))
            batches = _loaded(model, data)
        else:
            data = in_memory(data)
            model.check_data(data.images)
            generator = torch.Generator(data.images.device).manual_seed(seed)
            batches = drawn_batches(data, _ROWS_AT_ONCE, generator)
        found = [summary(model.encoder(x.to(model.reference))) for x in batches]
    if not found:
        raise ValueError("data must be a DataLoader with at least one batch, got none; take a smaller batch_size")
    return found


def drawn_batches(data: Dataset | Loaded, size: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Yield the data in order, `size` at a time, as `Dataset.draw` returns them."""
    if isinstance(data, Loaded):
        return data.batches(size)
    return (data.draw(rows, generator) for rows in torch.arange(len(data)).split(size))


def _loaded(model: VAE, loader: DataLoader) -> Iterator[Tensor]:
    for number, batch in enumerate(loader, start=1):
        with naming_batch(f"{number} of the DataLoader"):
            x = data_of(batch)
            model.check_data(x)
        yield from x.split(_ROWS_AT_ONCE)


def first_posterior(model: VAE, data: Dataset | Loaded) -> Distribution:
    """Return the posterior of the first datum, in evaluation mode."""
    with model.evaluating():
        return model.encoder(data.images[:1].to(model.reference))


def has_atom(model: VAE, data: Dataset | Loaded) -> bool:
    """Return True if the posterior has spikes, point masses at zero."""
    return inclusion_logits(first_posterior(model, data)) is not None
