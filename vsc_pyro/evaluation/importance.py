r"""The importance-weighted (IWAE) bound of `vsc_pyro.evaluate`, computed chunk by chunk.

The importance weight of a drawn code is :math:`p(x|z)\,p(z)/q(z|x)`; the bound is the logarithm of the mean weight.

A chunk holds a few draws of the codes of a few data. Its largest tensor has a bounded number of elements, whatever the
size of a datum, of the decoder's layers or of a mixture prior, and however many draws and data there are. On a CPU the
bound is small enough for the caches. All full chunks have the same shape and run the same operations, so they can be
captured and compiled (`vsc_pyro.acceleration.CompiledFunction`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vsc_pyro.acceleration import CompiledFunction, is_worth_compiling
from vsc_pyro.models.vae import VAE

# Elements of a chunk's largest tensor. On a CPU 2,000 codes of 784 pixels, 6 MB in float32; a GPU needs larger chunks.
_ELEMENTS_AT_ONCE = {"cpu": 2000 * 784, "cuda": 40_000 * 784}
# Draws of a datum in a chunk. Few, so that a chunk has many data and one pass of the encoder serves all of them.
_DRAWS_AT_ONCE = 20
# Seconds that compilation saves in a full chunk, roughly; see `vsc_pyro.acceleration.backends`.
_SAVED_BY_CHUNK = 0.01


class CodeDistributions(NamedTuple):
    """The distributions of the codes of a batch of data, all of `batch_shape` ``(B,)``.

    Attributes:
        posterior: q(z|x).
        prior: the marginal p(z); if the prior has none, p(z) given the datum.
        trained: the prior used in training.
        trained_kl: KL divergence of `posterior` from `trained`, shape ``(B,)``; None if it has no closed form.
    """

    posterior: Distribution
    prior: Distribution
    trained: Distribution
    trained_kl: Tensor | None


def codes_of(model: VAE, x: Tensor) -> CodeDistributions:
    """Return the distributions of the codes of data x, shape ``(B, ...)``."""
    posterior = model.encoder(x)
    trained = model.prior(x).expand(posterior.batch_shape)
    prior = getattr(model.prior, "marginal", model.prior)(x).expand(posterior.batch_shape)
    try:
        trained_kl = kl_divergence(posterior, trained)
    except NotImplementedError:
        trained_kl = None
    return CodeDistributions(posterior, prior, trained, trained_kl)


def log_likelihood_of(model: VAE, x: Tensor, z: Tensor) -> Tensor:
    r"""Return :math:`\log p(x|z)` of data ``(B, ...)`` given codes ``(*, B, J)``; shape ``(*, B)``."""
    likelihood = model.decoder(z)
    return likelihood.log_prob(x.reshape(x.shape[:1] + likelihood.event_shape))


class Chunk(NamedTuple):
    """Sizes of a full chunk: number of data, draws of each datum, and elements of the largest tensor per code."""

    rows: int
    draws: int
    elements: int


def chunk_of(model: VAE, x: Tensor, num_draws: int, other_draws: int) -> Chunk:
    """Return the chunk size for data like x; one and two codes are drawn and decoded to measure it.

    Args:
        model: in evaluation mode.
        x: a datum on the model's device, shape ``(1, ...)``.
        num_draws: draws of each datum.
        other_draws: draws of each datum that another computation makes in one batch.
    """
    codes = codes_of(model, x)
    one, two = _Sizes(), _Sizes()
    for draws, sizes in ((1, one), (2, two)):
        with sizes:
            _weigh(model, draws, x, codes.posterior, codes.prior, codes.trained if codes.trained_kl is None else None)
    # Only tensors that grow with the draws count, not the weights. If a decoder runs other operations for two draws
    # than for one, the tensors cannot be paired and all of them count.
    base = one.seen if len(one.seen) == len(two.seen) else [0] * len(two.seen)
    elements = max(1, *(after - before for before, after in zip(base, two.seen, strict=True)))
    at_once = max(1, _ELEMENTS_AT_ONCE.get(x.device.type, _ELEMENTS_AT_ONCE["cpu"]) // elements)
    draws = min(num_draws, _DRAWS_AT_ONCE, at_once)
    return Chunk(max(1, at_once // max(draws, other_draws)), draws, elements)


class _Sizes(TorchDispatchMode):
    """Record the number of elements of every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen.extend(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


class Weights(NamedTuple):
    r"""Averages over the draws of each datum, shape ``(B,)``, and the last draw.

    Attributes:
        log_likelihood: mean of :math:`\log p(x|z)`.
        log_ratio: mean of :math:`\log q(z|x) - \log p(z)`.
        trained_kl: KL divergence from the prior used in training; the mean log-ratio if it has no closed form.
        log_mean: :math:`\log \frac1K \sum_k p(x|z_k)\,p(z_k)/q(z_k|x)`.
        last: the last code drawn, shape ``(B, J)``.
    """

    log_likelihood: Tensor
    log_ratio: Tensor
    trained_kl: Tensor
    log_mean: Tensor
    last: Tensor


class Weighing:
    """Draw codes of batches of data and compute their importance weights.

    Args:
        model: in evaluation mode in every call.
        chunk: sizes of a full chunk. Smaller chunks, at the end of the draws or of the data, are not compiled.
        num_draws: draws K of each code.
        name: name of the work in a warning.
        compile: compile full chunks.
        after_chunk: called with the number of codes after every chunk.
    """

    def __init__(
        self, model: VAE, chunk: Chunk, num_draws: int, name: str, compile: bool, after_chunk: Callable[[int], Any]
    ) -> None:
        self._model = model
        self._chunk = chunk
        self._num_draws = num_draws
        self._after_chunk = after_chunk
        self._compiled = CompiledFunction(self._weigh, model, name) if compile else None

    @property
    def is_compiled(self) -> bool:
        """True if full chunks are compiled; False after a failed capture."""
        return self._compiled is not None and not self._compiled.is_eager

    def __call__(self, x: Tensor, codes: CodeDistributions) -> Weights:
        """Draw and weigh `num_draws` codes of each of the data x, shape ``(B, ...)``."""
        log_likelihood, log_ratio, trained_ratio, last = x.new_zeros(4, len(x))
        log_total = x.new_full((len(x),), -math.inf)
        trained = codes.trained if codes.trained_kl is None else None
        for start in range(0, self._num_draws, self._chunk.draws):
            draws = min(self._chunk.draws, self._num_draws - start)
            full = (len(x), draws) == self._chunk[:2]
            weigh = self._compiled if full and self._compiled is not None else self._weigh
            likelihoods, ratios, log_sum, last, *others = weigh(draws, x, codes.posterior, codes.prior, trained)
            log_likelihood += likelihoods
            log_ratio += ratios
            for other in others:
                trained_ratio += other
            log_total = torch.logaddexp(log_total, log_sum)
            self._after_chunk(draws * len(x))
        return Weights(
            log_likelihood / self._num_draws,
            log_ratio / self._num_draws,
            trained_ratio / self._num_draws if codes.trained_kl is None else codes.trained_kl,
            log_total - math.log(self._num_draws),
            last,
        )

    def _weigh(self, *args: Any) -> tuple[Tensor, ...]:
        return _weigh(self._model, *args)


def _weigh(
    model: VAE, num_draws: int, x: Tensor, posterior: Distribution, prior: Distribution, trained: Distribution | None
) -> tuple[Tensor, ...]:
    """Return the sums over a chunk's draws and its last draw; with `trained`, also the sum of that log-ratio."""
    z = posterior.sample((num_draws,))
    log_likelihood = log_likelihood_of(model, x, z)
    log_posterior = posterior.log_prob(z)
    ratio = log_posterior - prior.log_prob(z)
    others = () if trained is None else ((log_posterior - trained.log_prob(z)).sum(0),)
    return log_likelihood.sum(0), ratio.sum(0), torch.logsumexp(log_likelihood - ratio, 0), z[-1], *others


def are_worth_compiling(chunk: Chunk, num_codes: int, device: torch.device) -> bool:
    """Return True if compilation pays for `num_codes` codes in such chunks; warn if it would and no compiler exists."""
    num_chunks = num_codes * chunk.elements // _ELEMENTS_AT_ONCE.get(device.type, _ELEMENTS_AT_ONCE["cpu"])
    return is_worth_compiling(num_chunks, device, _SAVED_BY_CHUNK, "chunks of draws")
