"""Sparse autoencoders as objects: `encode`, `decode`, weights; with a posterior if the file has one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vsc_pyro._arguments import choice
from vsc_pyro.datasets import Dataset
from vsc_pyro.datasets.numbers import as_numbers
from vsc_pyro.distributions import centre, hard_code, inclusion_logits, inclusion_of
from vsc_pyro.models.data_checks import check_finite, check_layout
from vsc_pyro.models.encoders.base import Encoder


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and settings of a sparse autoencoder, under the names of its file.

    Attributes:
        architecture: ``"jumprelu"``, ``"standard"`` (a ReLU), ``"topk"``, or ``"vsc_pyro"`` for a posterior whose hard
            code is none of these.
        d_in: number of values of a datum.
        d_sae: number of latents J.
        apply_b_dec_to_input: True if `b_dec` is subtracted from a datum before it is encoded.
        k: number of latents on for each datum, for ``"topk"``.
    """

    architecture: str
    d_in: int
    d_sae: int
    apply_b_dec_to_input: bool = True
    k: int = 0


Data = Dataset | Tensor | np.ndarray


class SparseAutoencoder(nn.Module):
    """A sparse autoencoder with a linear encoder; `vsc_pyro.sae.load` returns it for files of SAELens.

    Methods take the data in memory that `vsc_pyro.fit` takes: numbers of shape ``(*, d_in)`` or ``(N, ...)``, as a
    tensor, an array, a data frame or a list of rows; or a `vsc_pyro.Dataset`, under dynamic binarisation a fresh draw
    of it. Results are tensors, and gradients flow to a tensor of data.

    Attributes:
        cfg: a `Config`.
        W_enc: weights of the encoder, shape ``(d_in, d_sae)``.
        b_enc: bias of the encoder, shape ``(d_sae,)``.
        W_dec: atoms, shape ``(d_sae, d_in)``.
        b_dec: bias of the decoder, shape ``(d_in,)``, in units of the data.
        threshold: thresholds of a JumpReLU, shape ``(d_sae,)``; 0 for other architectures.
    """

    cfg: Config
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor

    def __init__(self, cfg: Config, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.cfg = cfg
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            self.register_buffer(name, weights[name])
        self.register_buffer("threshold", weights.get("threshold", torch.zeros_like(self.b_enc)))

    def encode(self, x: Data, code: str = "hard") -> Tensor:
        """Return the codes of data x ``(*, d_in)``, shape ``(*, d_sae)``; ``"hard"`` is the only kind of `code`.

        Codes of a datum with NaN or infinite values are not finite either.

        Raises:
            ValueError: data of another size, data that are no real numbers, or another `code`.
        """
        choice("code", code, {"hard": None})
        x = self._data(x)
        centred = x - self.b_dec if self.cfg.apply_b_dec_to_input else x
        return ACTIVATIONS[self.cfg.architecture](centred @ self.W_enc + self.b_enc, self)

    def decode(self, z: Tensor | np.ndarray) -> Tensor:
        """Return the reconstructions of codes z ``(*, d_sae)``, shape ``(*, d_in)``, in units of the data.

        Raises:
            ValueError: codes of another size, or codes that are no real numbers.
        """
        z, d_sae = as_numbers(z, "z"), self.cfg.d_sae
        if z.shape[-1:] != (d_sae,):
            raise ValueError(
                f"z must have {d_sae} values in its last dimension, got shape {tuple(z.shape)}; pass codes as encode "
                "returns them, one number for each latent"
            )
        return z.to(self.W_dec) @ self.W_dec + self.b_dec

    def forward(self, x: Data) -> Tensor:
        """Return the reconstructions of data x ``(*, d_in)`` from their hard codes, shape ``(*, d_in)``."""
        return self.decode(self.encode(x))

    @property
    def _datum_shape(self) -> tuple[int, ...]:
        return (self.cfg.d_in,)

    def _data(self, x: Data) -> Tensor:
        """Return data as a tensor ``(*, d_in)`` of the weights' type and device."""
        is_set, d_in = isinstance(x, Dataset), self.cfg.d_in
        x = x.draw(slice(None)) if isinstance(x, Dataset) else as_numbers(x, "x")
        shape = tuple(x.shape)
        if len(shape) > 1 and (is_set or shape[-1] != d_in) and math.prod(shape[1:]) == d_in:
            check_layout(x, self._datum_shape, "an autoencoder")
            x = x.flatten(1)
        if x.shape[-1:] != (d_in,):
            raise ValueError(
                f"x must have {d_in} values in its last dimension, got shape {shape}; pass data of the kind that the "
                f"autoencoder was trained on, {d_in} values each"
            )
        return x.to(self.W_dec).contiguous()  # products of a frame's layout are rounded differently

    def extra_repr(self) -> str:
        return f"{self.cfg.architecture!r}, d_in={self.cfg.d_in}, d_sae={self.cfg.d_sae}"


def _jump_relu(u: Tensor, sae: SparseAutoencoder) -> Tensor:
    return torch.where(u <= sae.threshold, 0.0, u.relu())  # NaN stays NaN


def _top_k(u: Tensor, sae: SparseAutoencoder) -> Tensor:
    values, places = u.topk(sae.cfg.k, dim=-1)
    return torch.zeros_like(u).scatter(-1, places, values.relu())


ACTIVATIONS: dict[str, Callable[[Tensor, SparseAutoencoder], Tensor]] = {
    "jumprelu": _jump_relu,
    "standard": _jump_relu,
    "topk": _top_k,
}


class PosteriorAutoencoder(SparseAutoencoder):
    r"""A sparse autoencoder with a posterior; `vsc_pyro.sae.load` returns it for files of `vsc_pyro.sae.export`.

    Codes are in units in which atoms have norm 1: :math:`\|d_j\|` times those of the model. `W_enc` and `b_enc` are the
    encoder's location of the slab, to first order around `b_dec`. That is the location itself for a linear encoder.

    Attributes:
        encoder: the encoder of the exported model, in its own units.
        model: the whole model if its encoder is a `vsc_pyro.RefinedEncoder`, else None.
        norms: norms :math:`\|d_j\|` of the model's atoms, shape ``(d_sae,)``.
    """

    norms: Tensor
    _codes: ClassVar[dict[str, Callable]] = {"hard": hard_code, "mean": centre}

    def __init__(
        self,
        cfg: Config,
        weights: Mapping[str, Tensor],
        encoder: Encoder,
        norms: Tensor,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(cfg, weights)
        self.encoder, self.model = encoder, model
        self.eval().requires_grad_(False)
        self.register_buffer("norms", norms)

    def encode(self, x: Data, code: str = "hard") -> Tensor:
        r"""Return the codes of data x ``(*, d_in)``, shape ``(*, d_sae)``.

        Args:
            x: data in their own units.
            code: ``"hard"`` for the centre of the slab where :math:`\gamma > 1/2` and exactly 0 elsewhere; ``"mean"``
                for the mean of the posterior, :math:`\gamma` times the centre of the slab.

        Raises:
            ValueError: data of another size, data that are no finite real numbers, or an unknown `code`.
        """
        code_of = choice("code", code, self._codes)
        return self._of_posterior(x, code_of) * self.norms

    def inclusion(self, x: Data) -> Tensor:
        r"""Return the probability :math:`\gamma` that each latent is on, shape ``(*, d_sae)``, for data ``(*, d_in)``.

        For an encoder without posterior, as of an L1 sparse autoencoder, it is 0 or 1.

        Raises:
            ValueError: data of another size, or data that are no finite real numbers.
        """
        return self._of_posterior(x, inclusion_of)

    @property
    def is_probabilistic(self) -> bool:
        """False for an encoder without posterior, as of an L1 sparse autoencoder, whose inclusions are 0 or 1."""
        return inclusion_logits(self.encoder(self.b_dec.reshape(1, *self.encoder.input_shape))) is not None

    @property
    def _datum_shape(self) -> tuple[int, ...]:
        return self.encoder.input_shape

    def _of_posterior(self, x: Data, answer: Callable) -> Tensor:
        x = self._data(x)
        check_finite(x.reshape(-1, self.cfg.d_in), self.W_dec.dtype)
        posterior = self.encoder(x.reshape(-1, *self.encoder.input_shape))
        return answer(posterior).reshape(*x.shape[:-1], self.cfg.d_sae)
