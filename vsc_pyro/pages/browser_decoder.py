"""Decoders that a web page can run in a browser: linear maps and MLPs, with their likelihoods.

The page has JavaScript for each activation, likelihood and slab below; it computes in float64 from float32 weights.
"""

from __future__ import annotations

import base64
import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from vsc_pyro.models.networks import ACTIVATIONS
from vsc_pyro.models.vae import VAE

# The settings must be those of `vsc_pyro.models.networks.ACTIVATIONS`.
ACTIVATION_SOURCES = {
    "relu": "x => Math.max(x, 0)",
    "leaky-relu": "x => (x > 0 ? x : 0.01 * x)",
    "elu": "x => (x > 0 ? x : Math.expm1(x))",
    "gelu": "x => (x / 2) * (1 + erf(x / Math.SQRT2))",
    "silu": "x => x * sigmoid(x)",
    "softplus": "softplus",
    "tanh": "Math.tanh",
}
# One draw from the slab's family with location 0 and scale 1.
DRAW_SOURCES = {
    "Normal": "() => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform())",
    "Laplace": "() => Math.log(uniform()) - Math.log(uniform())",
    "Cauchy": "() => Math.tan(Math.PI * (uniform() - 0.5))",
}


class Likelihood(NamedTuple):
    """A likelihood of independent values, in JavaScript.

    Attributes:
        parameter: name of the distribution's parameter that is the network's output.
        mean: the mean as a function of the output.
        log_density: the log-density of a value x, given the output y and a scale s.
        of_binary: True if it is a likelihood of binary values only, and a cross-entropy on others.
    """

    parameter: str
    mean: str
    log_density: str
    of_binary: bool = False


LIKELIHOODS = {
    "CrossEntropyBernoulli": Likelihood("logits", "sigmoid", "(x, y) => x * y - softplus(y)", of_binary=True),
    "StableContinuousBernoulli": Likelihood(
        "logits",
        "y => (1 + y / 2 * langevinRatio(y / 2)) / 2",
        "(x, y) => x * y - softplus(y) + Math.LN2 + Math.log1p(y * y / 4 * langevinRatio(y / 2))",
    ),
    "Normal": Likelihood(
        "loc", "y => y", "(x, y, s) => -0.5 * ((x - y) / s) ** 2 - Math.log(s) - 0.5 * Math.log(2 * Math.PI)"
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class BrowserDecoder:
    """A decoder in the form that the page runs.

    Attributes:
        layers: the linear layers, first to last.
        activation: name of the activation; None for a linear map.
        likelihood: likelihood of the data given the outputs.
        scale: scale of the likelihood, one number for each value, or None.
        unit: factor of the last layer's outputs.
    """

    layers: list[nn.Linear]
    activation: str | None
    likelihood: Likelihood
    scale: Tensor | None
    unit: Tensor

    def as_json(self) -> dict[str, object]:
        """Return description, weights and scales for the page."""
        units = [*[torch.ones_like(self.unit)] * (len(self.layers) - 1), self.unit]
        layers = [
            {"weight": packed(unit * layer.weight), "bias": packed(unit * layer.bias)}
            for layer, unit in zip(self.layers, units, strict=True)
        ]
        sizes = "–".join(map(str, [self.layers[0].in_features, *(layer.out_features for layer in self.layers)]))
        return {
            "decoder": f"decoder {sizes} ({self.activation or 'linear'})",
            "layers": layers,
            "noise": None if self.scale is None else packed(self.scale),
        }


def browser_decoder(model: VAE, z: Tensor) -> BrowserDecoder:
    """Convert the model's decoder for the page, and check that it computes the same on codes z, shape ``(B, J)``.

    Raises:
        ValueError: a decoder that the page cannot run; the message says why, and names the alternative.
    """
    remedy = (
        "vsc_pyro.explore runs the decoder in the page, and supports a linear map, or linear layers with one of the "
        f"activations {', '.join(map(repr, ACTIVATION_SOURCES))} between them, in a BernoulliDecoder, "
        "ContinuousBernoulliDecoder or NormalDecoder; vsc_pyro.report supports any decoder"
    )
    layers, activation = _layers(model.decoder, remedy)
    with model.evaluating():
        expected = _scalars(model.decoder(z))
        family = type(expected).__name__
        if family not in LIKELIHOODS:
            raise ValueError(f"decoder returns a likelihood, {family}, that the page does not know: {remedy}")
        likelihood = LIKELIHOODS[family]
        outputs = z
        for place, layer in enumerate(layers):
            outputs = layer(ACTIVATIONS[activation]()(outputs) if place and activation else outputs)
        unit = getattr(model.decoder, "unit", None)
        unit = outputs.new_ones(()) if unit is None else unit
        outputs = unit * outputs
        own = getattr(expected, likelihood.parameter).reshape(outputs.shape)
        scale = expected.scale.reshape(outputs.shape) if hasattr(expected, "scale") else None
        if not torch.allclose(outputs, own, rtol=1e-4, atol=1e-4 * float(own.abs().max())):
            raise ValueError(f"decoder computes something else than its layers in sequence: {remedy}")
        if scale is not None and not torch.allclose(scale, scale[:1].expand_as(scale)):
            raise ValueError(f"decoder returns a scale that depends on the code: {remedy}")
    return BrowserDecoder(layers, activation, likelihood, None if scale is None else scale[0], unit)


def _layers(decoder: nn.Module, remedy: str) -> tuple[list[nn.Linear], str | None]:
    modules = list(getattr(decoder, "network", None) or [])
    linear, between = modules[::2], modules[1::2]
    known = {kind: name for name, kind in ACTIVATIONS.items() if name in ACTIVATION_SOURCES}
    kinds = {type(module) for module in between}
    strange = [module for module in linear if type(module) is not nn.Linear or module.bias is None]
    strange += [module for module in between if type(module) not in known]
    if not modules or strange or len(kinds) > 1 or len(linear) == len(between):
        what = type(strange[0] if strange else decoder).__name__
        raise ValueError(f"decoder is not one that a browser can run, got {what}: {remedy}")
    return linear, known[kinds.pop()] if kinds else None


def _scalars(distribution: Distribution) -> Any:
    """Return the distribution without the `Independent` around it."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def packed(tensor: Tensor) -> str:
    """Encode a tensor as base64 of little-endian float32."""
    return base64.b64encode(tensor.detach().cpu().contiguous().numpy().astype("<f4").tobytes()).decode()
