"""Networks in bfloat16, everything else as it was: what `fit`'s `precision` means.

A network's matrix products and convolutions are most of a step's arithmetic, and stand eight significant bits; a
log-probability summed over pixels and latents does not. So only the networks of encoder, decoder and a prior's
classifier run in bfloat16 (by `torch.autocast`, which casts weights as it goes), and what they put out is cast back
before a distribution is made of it. Parameters, gradients, log-probabilities, divergences and the optimiser's state
keep the model's own type.

It pays where the hardware has matrix units for it: GPUs, and CPUs with AMX. One that has only AVX-512's bfloat16
instructions may be slower by it (a step of 784-400-50, batch 200, compiled, one thread: 10.5 ms instead of 6.6).

An encoder or a decoder of your own takes part if it has an attribute ``network_precision = "float32"``, which `fit`
sets, and calls ``run_network(self.network, x, self.network_precision)`` in the place of ``self.network(x)``.

References
    P. Micikevicius et al. (2018), Mixed precision training.
    D. Kalamkar et al. (2019), A study of bfloat16 for deep learning training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vsc_pyro._arguments import choice

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}


def run_network(network: nn.Module, x: Tensor, precision: str) -> Tensor:
    """``network(x)``, computed in one of the `PRECISIONS` and returned in the type of x."""
    dtype = PRECISIONS[precision]
    if dtype is None:
        return network(x)
    with torch.autocast(x.device.type, dtype):
        return network(x).to(x.dtype)


@contextlib.contextmanager
def networks_in(model: nn.Module, precision: str) -> Iterator[None]:
    """Let the networks of `model` run in that precision within, and afterwards as before.

    These are the networks of modules with an attribute `network_precision`, the name that they hand to `run_network`.

    Args:
        model: with an `encoder` and a `decoder`.
        precision: one of the names in `PRECISIONS`.

    Raises:
        ValueError: an unknown precision; bfloat16 for an encoder or a decoder that has no such attribute, or for a
            model that is not in float32.
    """
    choice("precision", precision, PRECISIONS)
    if precision != "float32":
        _check_can_run(model, precision)
    before = [(m, m.network_precision) for m in model.modules() if hasattr(m, "network_precision")]
    for module, _ in before:
        module.network_precision = precision
    try:
        yield
    finally:
        for module, own in before:
            module.network_precision = own


def _check_can_run(model: nn.Module, precision: str) -> None:
    for part in (model.encoder, model.decoder):
        if not hasattr(part, "network_precision"):
            raise ValueError(
                f"precision={precision!r} is for parts with an attribute network_precision, by which they run their "
                f"networks, and {type(part).__name__} has none; see vsc_pyro.models.precision, or take "
                "precision='float32'"
            )
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if other := dtypes - {torch.float32}:
        raise ValueError(
            f"precision={precision!r} is for models whose parameters are float32, got {other.pop()}; "
            "call model.float(), or take precision='float32', which leaves the model's own type"
        )
