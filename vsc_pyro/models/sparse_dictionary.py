"""`SparseDictionary`: a sparse autoencoder (SAE) whose code has a posterior, built from this library's parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from vsc_pyro._arguments import natural_int, positive_float, positive_int, sizes
from vsc_pyro.gates import Gate
from vsc_pyro.models.decoders import DictionaryDecoder
from vsc_pyro.models.encoders import RefinedEncoder, SpikeSlabEncoder
from vsc_pyro.models.priors import SpikeSlabPrior
from vsc_pyro.models.vae import VAE

# In units of the code, in which a feature that is on is about 1.
_SLAB_LOC, _SLAB_SCALE, _POSTERIOR_SCALE = 1.0, 0.5, 0.3
# Log-odds of inclusion that a feature gains for a projection of 1.
_SLOPE = 3.0


# Learning rates of long and of short runs, and the product of rate and steps between them.
_LONG, _SHORT, _TRAVEL = 1e-3, 3e-3, 4.5


def _learning_rate(steps: int) -> float:
    """Return a learning rate that short runs can learn with, and under which features do not die in long ones."""
    return min(_SHORT, max(_LONG, _TRAVEL / steps))


class SparseDictionary(VAE):
    r"""The SAE: a linear dictionary of features, each of which is there or not, with a probability.

    .. math:: x = b + \sum_j z_j d_j + \epsilon, \qquad z_j \sim \alpha_j N(m_j, s_j^2) + (1 - \alpha_j)\, \delta_0,
        \qquad \epsilon \sim N(0, \sigma^2 I).

    It is a `VAE` of a `DictionaryDecoder`, whose atoms have one norm, a `SpikeSlabPrior` that learns inclusion and
    slab of every feature, and a `RefinedEncoder`. The noise :math:`\sigma` is learned if `noise` does not set it.

    ``fit`` trains it by ``objective="nested"``, without sampling: the mean bound of the first J / 16, the first J / 4
    and all features. A dictionary with fewer atoms than the data have features is misspecified, and by its plain bound
    atoms also code features that are not theirs. The nested bound reduces that. If there is an atom for every feature,
    ``objective="exact"``, the plain bound, finds them better.

    Everything starts in units of the data, which `prepare` measures. With V the total variance of the data and L =
    `expected_active`, a feature that is on contributes a vector of length about :math:`\sqrt{V / L}`, the norm of the
    atoms, so slabs start at 1. The decoder's bias is the mean of the data. A linear encoder starts at the transpose of
    the decoder: its locations and log-odds rise with :math:`d_j^\top (x - b)`. An encoder with hidden layers starts at
    random, with the inclusion of the prior.

    Args:
        input_shape: shape of one datum, or its number of dimensions d.
        num_features: number of features J.
        expected_active: L, the expected number of features of a datum before training; above 0, below J.
        slab: family of the slabs, see `SpikeSlabPrior`.
        hidden: widths of the encoder's hidden layers; ``()`` for a linear encoder.
        scale: of the posterior's slabs, ``"amortised"`` or ``"per-latent"``, see `SpikeSlabEncoder`.
        refine_steps: number of closed-form updates after the encoder, see `RefinedEncoder`; 0 for none, the only choice
            for slabs other than ``"normal"`` and ``"truncated-normal"``.
        learn_slab: ``"per-latent"``, or ``"global"`` for features of one strength, see `SpikeSlabPrior`.
        noise: :math:`\sigma` as a share of the data's standard deviation, between 0 and 1, which training keeps; None
            to learn it. About ``noise**2`` of the data's variance stays unexplained: less noise turns more features on.
            Set it for data that are no sum of a few features and noise, such as embeddings.
        gate: gradient estimator of the spikes, for objectives that draw them.
        beta: weight of the codes' KL divergence, or the power :math:`1/\beta` of the likelihood (Grünwald, 2012;
            Miller & Dunson, 2019). 1 for a bound.

    Attributes:
        training_defaults: objective, minibatches, warm-up and learning rate that `vsc_pyro.fit` takes. The rate is 3e-3
            for up to 1,500 steps, 1e-3 for 4,500 and more, and between them in proportion to 1 / steps.

    Raises:
        ValueError: an argument that one of the parts refuses.

    References:
        P. Grünwald (2012), The safe Bayesian: learning the learning rate via the mixability gap.
        J. W. Miller, D. B. Dunson (2019), Robust Bayesian inference via coarsening.

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> _ = torch.manual_seed(0)
        >>> sae = vsc.SparseDictionary(16, num_features=32, expected_active=3)
        >>> history = vsc.fit(sae, torch.randn(2000, 16), epochs=1, progress=False, device="cpu")
        >>> sae.encoder(torch.randn(5, 16)).base_dist.probs.shape, sae.decoder.dictionary.shape
        (torch.Size([5, 32]), torch.Size([32, 16]))
    """

    training_defaults: Mapping[str, Any] = MappingProxyType(
        {"objective": "nested", "batch_size": 1024, "warmup": 0.2, "lr": _learning_rate}
    )

    def __init__(
        self,
        input_shape: int | Sequence[int],
        num_features: int,
        *,
        expected_active: float = 5.0,
        slab: str = "normal",
        hidden: int | Sequence[int] = (),
        scale: str = "per-latent",
        refine_steps: int = 1,
        learn_slab: bool | str = "per-latent",
        noise: float | None = None,
        gate: str | Gate = "concrete",
        beta: float = 1.0,
    ) -> None:
        shape, num_features = sizes("input_shape", input_shape), positive_int("num_features", num_features)
        expected_active = positive_float("expected_active", expected_active)
        decoder = DictionaryDecoder(num_features, shape, math.sqrt(math.prod(shape) / expected_active), noise=noise)
        options: dict[str, Any] = {"hidden": hidden, "gate": gate, "slab": slab, "scale": scale}
        if natural_int("refine_steps", refine_steps):
            options["steps"] = refine_steps
        encoder = (RefinedEncoder if refine_steps else SpikeSlabEncoder)(shape, num_features, **options)
        prior = SpikeSlabPrior(
            num_features,
            expected_active=expected_active,
            learn_inclusion=True,
            slab=slab,
            learn_slab=learn_slab,
            slab_loc=_SLAB_LOC,
            slab_scale=_SLAB_SCALE,
        )
        super().__init__(encoder, decoder, prior, beta)
        self._start_at_the_transpose()

    def prepare(self, images: Tensor) -> None:
        is_fresh = self.encoder.is_fresh
        super().prepare(images)
        if is_fresh:
            self._start_at_the_transpose()

    @torch.no_grad()
    def _start_at_the_transpose(self) -> None:
        """Start a linear encoder from the projections of data on the atoms."""
        encoder, layer = self.encoder, self.encoder.own_layer
        if len(encoder.network) > 2 or not layer.weight.requires_grad:
            return
        encoder.input_scale.copy_(self.decoder.unit)
        atoms = self.decoder.dictionary.flatten(1)
        heads = layer.weight.unflatten(0, (encoder.num_heads, -1))
        biases = layer.bias.unflatten(0, (encoder.num_heads, -1))
        log_squared_scale = getattr(encoder, "log_squared_scale", biases[1])
        heads[0] = encoder.input_scale * atoms / atoms.square().sum(1, keepdim=True)
        heads[1:-1] = 0
        heads[-1] = _SLOPE * heads[0]
        biases[0] = 0
        biases[-1] = encoder.offset
        log_squared_scale.fill_(2 * math.log(_POSTERIOR_SCALE))
