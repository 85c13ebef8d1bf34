"""Codes of data in a dictionary, whatever kind of model holds it, as `vsc_pyro.evaluate_dictionary` reads them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vsc_pyro.datasets import Dataset
from vsc_pyro.datasets.numbers import as_numbers
from vsc_pyro.distributions import centre, hard_code, inclusion_logits, inclusion_of
from vsc_pyro.evaluation.codes import drawn_batches
from vsc_pyro.models.data_checks import check_figure
from vsc_pyro.models.modes import in_mode
from vsc_pyro.models.vae import VAE

_NUMBERS_AT_ONCE = 2**21
_ROWS_AT_ONCE = 1024
# Probabilities may leave [0, 1] by this much.
_ROUNDING = 1e-4


class DictionaryCodes(NamedTuple):
    """Codes of B data in J latents, on the CPU.

    Attributes:
        x: the data, flat, shape ``(B, d)``, float64.
        inclusion: probability that each latent is on, shape ``(B, J)``; of a deterministic code 0 or 1.
        code: posterior-mean code, or the deterministic code, shape ``(B, J)``.
        mean, hard: reconstructions from the posterior-mean code and from the hard code, shape ``(B, d)``, float64.
    """

    x: Tensor
    inclusion: Tensor
    code: Tensor
    mean: Tensor
    hard: Tensor


class Coder:
    """Codes and reconstructions of a `VAE`, or of an object with `encode`, `decode` and `W_dec`.

    An object that also has `inclusion`, such as a `vsc_pyro.sae.PosteriorAutoencoder`, has a posterior, unless its
    attribute `is_probabilistic` is False: ``inclusion(x)`` are its probabilities, and ``encode(x, code="mean")`` its
    posterior-mean code.

    Args:
        model: the model.
        data: data in memory.
        posterior: function from data to their posterior, as in `vsc_pyro.check_calibration`; None for the encoder.
        seed: of dynamic binarisation.

    Attributes:
        atoms: shape ``(J, d)``, float32, on the CPU.
        is_probabilistic: False if inclusion probabilities are 0 or 1 by construction.

    Raises:
        ValueError: a model without a dictionary, or data of another shape.
    """

    atoms: Tensor

    def __init__(self, model: Any, data: Dataset, posterior: Callable[[Tensor], Any] | None, seed: int) -> None:
        self._model, self._data, self._posterior, self._seed = model, data, posterior, seed
        size = data.images[0].numel()
        self._is_vae = isinstance(model, VAE)
        self.is_probabilistic = getattr(model, "is_probabilistic", hasattr(model, "inclusion"))
        if self._is_vae:
            model.check_data(data.images)
            self.is_probabilistic = posterior is not None or _has_spikes(model, data.images[:1])
            self._code, self._like, atoms = self._posterior_code, model.reference, _dictionary(model)
        elif all(hasattr(model, name) for name in ("encode", "decode", "W_dec")):
            code = self._codes_of_inclusion if self.is_probabilistic else self._deterministic_code
            atoms = as_numbers(model.W_dec, "W_dec")
            self._code, self._like = code, atoms
        else:
            raise ValueError(
                f"model must be a VAE with a linear decoder or an object with encode, decode and W_dec, got "
                f"{type(model).__name__}"
            )
        if posterior is not None and not self._is_vae:
            raise ValueError("posterior is for a VAE; a model with W_dec has codes of its own, so omit it")
        if posterior is not None and not callable(posterior):
            raise ValueError(f"posterior must be a function from data to their posterior, got {posterior!r}")
        if atoms.ndim != 2 or atoms.shape[1] != size:
            raise ValueError(
                f"the model has a dictionary of shape {tuple(atoms.shape)}, and a datum has {size} values; the "
                "dictionary must have one row of that many values for each latent (data with a context, their size or "
                "covariates, have more: vsc_pyro.evaluate takes them)"
            )
        self.atoms = atoms.detach().float().cpu()

    def batches(self) -> Iterator[tuple[slice, DictionaryCodes]]:
        """Yield rows of the data and their codes, in order, the same in every call."""
        rows = max(1, min(_ROWS_AT_ONCE, _NUMBERS_AT_ONCE // max(self.atoms.shape)))
        generator = torch.Generator(self._data.images.device).manual_seed(self._seed)
        first = 0
        with self._evaluating():
            for x in drawn_batches(self._data, rows, generator):
                inclusion, code, mean, hard = self._code(x.to(self._like))
                check_figure("inclusion probability", inclusion, first)
                for decoded in (mean, hard):
                    self._check("decode(code)", decoded, len(x), self.atoms.shape[1])
                    check_figure("reconstruction", decoded, first)
                yield (
                    slice(first, first + len(x)),
                    DictionaryCodes(_flat(x), inclusion.cpu(), code.cpu(), _flat(mean), _flat(hard)),
                )
                first += len(x)

    def _check(self, name: str, values: Tensor, rows: int, columns: int) -> None:
        if values.shape != (rows, columns):
            raise ValueError(
                f"{name} must have shape ({rows}, {columns}) for {rows} data, with the dictionary's shape "
                f"{tuple(self.atoms.shape)}, got {tuple(values.shape)}; return one row for each datum"
            )

    def _checked(self, inclusion: Tensor, mean: Tensor, rows: int) -> Tensor:
        """Return the inclusion of a posterior without its rounding beyond [0, 1]."""
        for name, values in (("inclusion", inclusion), ("mean", mean)):
            self._check(f"{name} of the posterior", values, rows, len(self.atoms))
        if ((inclusion < -_ROUNDING) | (inclusion > 1 + _ROUNDING)).any():
            low, high = inclusion.aminmax()
            raise ValueError(
                f"inclusion of the posterior must be probabilities, got values from {float(low):g} to {float(high):g}; "
                "return numbers from 0 to 1"
            )
        return inclusion.clamp(0, 1)

    def score(self, codes: DictionaryCodes) -> Tensor:
        """Return what ranks data by how much they have of a latent: inclusion, or size of a deterministic code."""
        return codes.inclusion if self.is_probabilistic else codes.code.abs()

    @property
    def device(self) -> torch.device:
        return self._like.device

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self._is_vae:
                stack.enter_context(self._model.evaluating())
            elif isinstance(self._model, nn.Module):
                stack.enter_context(in_mode(self._model, False))
            stack.enter_context(torch.no_grad())
            yield

    def _posterior_code(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        posterior: Any = (self._posterior or self._model.encoder)(x)
        if all(isinstance(getattr(posterior, name, None), Tensor) for name in ("inclusion", "mean")):
            inclusion, mean = posterior.inclusion.to(x), posterior.mean.to(x)
            inclusion = self._checked(inclusion, mean, len(x))
            hard = torch.where(inclusion > 0.5, mean / inclusion, 0)
        elif isinstance(posterior, Distribution):
            inclusion, mean, hard = inclusion_of(posterior), centre(posterior), hard_code(posterior)
            inclusion = self._checked(inclusion, mean, len(x))
        else:
            raise ValueError(
                "posterior must return a distribution, or an object with tensors inclusion and mean, got "
                f"{type(posterior).__name__}"
            )
        decoded, hard_decoded = (centre(self._model.decoder(code)) for code in (mean, hard))
        return inclusion, mean, decoded.flatten(1), hard_decoded.flatten(1)

    def _codes_of_inclusion(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        model, x = self._model, x.flatten(1)
        inclusion, mean, hard = model.inclusion(x), model.encode(x, code="mean"), model.encode(x)
        inclusion = self._checked(inclusion, mean, len(x))
        self._check("encode(x)", hard, len(x), len(self.atoms))
        return inclusion, mean, model.decode(mean), model.decode(hard)

    def _deterministic_code(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        code = self._model.encode(x.flatten(1))
        self._check("encode(x)", code, len(x), len(self.atoms))
        decoded = self._model.decode(code)
        return (code != 0).to(code), code, decoded, decoded


def _has_spikes(model: VAE, x: Tensor) -> bool:
    with model.evaluating():
        return inclusion_logits(model.encoder(x.to(model.reference))) is not None


def _dictionary(model: VAE) -> Tensor:
    atoms = getattr(model.decoder, "dictionary", None)
    if atoms is None:
        raise ValueError(
            f"the decoder, {type(model.decoder).__name__}, has no attribute dictionary; take a linear one, such as "
            "NormalDecoder(..., hidden=())"
        )
    return atoms.flatten(1)


def _flat(values: Tensor) -> Tensor:
    return values.flatten(1).double().cpu()
