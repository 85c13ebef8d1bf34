"""Checks of a model's parts: modules that return Pyro distributions, with the batch shape of what they are given."""

from __future__ import annotations

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Distribution


def check_are_modules(**parts: object) -> None:
    """Raise `ValueError` unless all parts of a model are modules."""
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            raise ValueError(f"{name} must be a torch.nn.Module whose forward returns a distribution, got {part!r}")


def check_is_pyro(part: str, distribution: Distribution) -> None:
    """Raise `ValueError` unless a part returned a distribution of Pyro."""
    if not isinstance(distribution, TorchDistributionMixin):
        raise ValueError(
            f"the {part} must return a Pyro distribution, got {type(distribution).__module__}."
            f"{type(distribution).__name__}; take the class of that name from pyro.distributions"
        )


def check_batch(part: str, distribution: Distribution, argument: str, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` unless a part returned a distribution with as many batch dimensions as its argument has."""
    if len(distribution.batch_shape) != len(shape):
        raise ValueError(
            f"the {part} must return a distribution of batch_shape {shape} for {argument} of shape "
            f"({', '.join(map(str, shape))}, ...), got batch_shape {tuple(distribution.batch_shape)} and event_shape "
            f"{tuple(distribution.event_shape)}; keep these dimensions, and let .to_event() take those of one datum"
        )


def check_takes_draws(decoder: nn.Module, z: Tensor) -> None:
    """Raise `ValueError` unless a decoder takes several draws of each code, z of shape ``(K, B, J)``."""
    try:
        likelihood = decoder(z)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"the decoder must take codes of shape (*, J), such as several draws of each, and refuses "
            f"{tuple(z.shape)} ({error}); flatten the leading dimensions before its network, and unflatten them after"
        ) from error
    check_batch("decoder", likelihood, "z", tuple(z.shape[:2]))
