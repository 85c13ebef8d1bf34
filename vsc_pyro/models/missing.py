"""Missing values, NaN in the data: encoders and priors see the mean or a mask, and likelihoods leave them out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vsc_pyro.distributions.observed import observed_only


class Missing(nn.Module):
    """Replaces missing values by the training data's mean for encoder and prior, and leaves them out of likelihoods.

    Args:
        shape: shape of a datum, ``()`` if unknown; missing values are then 0.

    Buffers:
        mean: mean of the observed training data, of shape `shape`; 0 for a value that is never observed.
        prepared: True once training data have been shown.
    """

    mean: Tensor
    prepared: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("prepared", torch.tensor(False))

    def attach(self, encoder: nn.Module, decoder: nn.Module, prior: nn.Module) -> None:
        """Work on all that enters `encoder` and `prior`, and on all that leaves `decoder`."""
        for part in (encoder, prior):
            part.register_forward_pre_hook(self._before_part)
        decoder.register_forward_hook(self._after_decoder)

    def _before_part(self, part: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if getattr(part, "takes_missing", False):
            return inputs
        x, *others = inputs
        return (self.filled(x), *others)

    def _after_decoder(self, _: nn.Module, inputs: Any, likelihood: Distribution) -> Distribution:
        return observed_only(likelihood)

    def filled(self, x: Tensor) -> Tensor:
        """Return data ``(B, ...)`` whose missing values are the mean."""
        mean = self.mean.reshape(x.shape[1:]) if self.mean.ndim else self.mean
        return torch.where(x.isnan(), mean.to(x), x)

    def prepare(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Take the mean of training data, shape ``(N, ...)``, in the first call.

        Returns:
            The data with the mean in place of missing values; and data of the same mean and of the variance of the
            observed values, for what starts from moments.
        """
        observed = ~images.isnan()
        count = observed.sum(0)
        mean = images.nan_to_num(0.0).double().sum(0) / count.clamp(min=1)
        if not self.prepared:
            self.prepared.fill_(True)
            if self.mean.ndim:
                self.mean.copy_(mean.reshape(self.mean.shape))
        deviation = torch.where(observed, images - mean, 0.0)
        wider = (len(images) / count.clamp(min=1)).sqrt()
        return tuple((mean + deviation * by).to(images.dtype) for by in (1.0, wider))  # pyright: ignore[reportReturnType]
