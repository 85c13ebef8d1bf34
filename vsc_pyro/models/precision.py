"""Mixed precision: networks in bfloat16, everything else in the model's own type.

A network's matrix products and convolutions are most of a step's arithmetic, and eight significant bits are enough for
them; they are too few for a log-probability summed over pixels and latents. So only the networks of encoder, decoder
and a prior's classifier run in bfloat16. `torch.autocast` casts their weights on the fly, and their outputs are cast
back before a distribution is built. Parameters, gradients, log-probabilities, divergences and the optimiser's state
keep the model's own type.

bfloat16 is faster on hardware with matrix units for it: GPUs, and CPUs with AMX. With only AVX-512's bfloat16
instructions it depends on the sizes, and the casts may cost more than the products save. ``fit(precision="auto")``
tries it out.

A custom encoder or decoder takes part if it has an attribute ``network_precision = "float32"``, which `fit` sets, and
calls ``run_network(self.network, x, self.network_precision)`` instead of ``self.network(x)``.

References
    P. Micikevicius et al. (2018), Mixed precision training.
    D. Kalamkar et al. (2019), A study of bfloat16 for deep learning training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vsc_pyro._arguments import choice

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}


def run_network(network: nn.Module, x: Tensor, precision: str) -> Tensor:
    """Return ``network(x)``, computed in one of the `PRECISIONS` and cast to the type of x."""
    dtype = PRECISIONS[precision]
    if dtype is None:
        return network(x)
    with torch.autocast(x.device.type, dtype):
        return network(x).to(x.dtype)


@contextlib.contextmanager
def networks_in(model: nn.Module, precision: str) -> Iterator[None]:
    """Run the networks of `model` in the given precision, and restore their own on leaving.

    It sets the attribute `network_precision` of every submodule that has one.

    Args:
        model: with an `encoder` and a `decoder`.
        precision: one of the names in `PRECISIONS`.

    Raises:
        ValueError: an unknown precision; bfloat16 for an encoder or a decoder without the attribute, or for a model
            that is not in float32.
    """
    choice("precision", precision, PRECISIONS)
    if precision != "float32":
        _check_can_run(model, precision)
    parts: list[Any] = [part for part in model.modules() if hasattr(part, "network_precision")]
    before = [part.network_precision for part in parts]
    for part in parts:
        part.network_precision = precision
    try:
        yield
    finally:
        for part, own in zip(parts, before, strict=True):
            part.network_precision = own


def can_run(model: nn.Module, precision: str) -> bool:
    """Return True if the networks of `model` can run in the given precision."""
    try:
        _check_can_run(model, precision)
    except ValueError:
        return False
    return True


def _check_can_run(model: nn.Module, precision: str) -> None:
    for part in (model.encoder, model.decoder):
        if not hasattr(part, "network_precision"):
            raise ValueError(
                f"precision={precision!r} needs an encoder and a decoder with an attribute network_precision, and "
                f"{type(part).__name__} has none; add it, see vsc_pyro.models.precision, or pass precision='float32'"
            )
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if other := dtypes - {torch.float32}:
        raise ValueError(
            f"precision={precision!r} needs a model whose parameters are float32, got {other.pop()}; "
            "call model.float(), or pass precision='float32', which keeps the model's own type"
        )
