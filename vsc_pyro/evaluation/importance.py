r"""Importance weights of drawn codes, :math:`p(x|z)\,p(z)/q(z|x)`, chunk by chunk: the work of `vsc_pyro.evaluate`.

A chunk is a few draws of the codes of a few data. What it holds at once is bounded in numbers, not in codes, whatever
the size of a datum, of the decoder's layers or of a mixture prior, however many draws and data there are: on a CPU so
few that they stay in its caches (784 pixels, eagerly: a third faster than chunks of 30 MB). All full chunks are of one
shape and do the same operations, so that they can be captured and compiled (`vsc_pyro.acceleration.CompiledFunction`).
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

# Of a chunk's largest tensor: 2,000 codes of 784 pixels, 6 MB in float32, on a CPU; a GPU wants more to do.
_ELEMENTS_AT_ONCE = {"cpu": 2000 * 784, "cuda": 40_000 * 784}
# Of a datum. The same for any number of draws, so that a chunk is of many data and their encoding is done at once.
_DRAWS_AT_ONCE = 20
# Seconds that compilation saves in a full chunk, roughly; see `vsc_pyro.acceleration.backends`.
_SAVED_BY_CHUNK = 0.003


class Codes(NamedTuple):
    """The distributions of the codes of a batch of data, all of `batch_shape` ``(B,)``.

    Attributes:
        posterior: q(z|x).
        prior: p(z), before any datum is seen; where it depends on the datum, given that.
        trained: the prior that the model is trained with.
        trained_kl: KL divergence of the posterior from it, shape ``(B,)``; None where it has no closed form.
    """

    posterior: Distribution
    prior: Distribution
    trained: Distribution
    trained_kl: Tensor | None


def codes_of(model: VAE, x: Tensor) -> Codes:
    """The distributions of the codes of data x, shape ``(B, ...)``."""
    posterior = model.encoder(x)
    trained = model.prior(x).expand(posterior.batch_shape)
    prior = getattr(model.prior, "marginal", model.prior)(x).expand(posterior.batch_shape)
    try:
        trained_kl = kl_divergence(posterior, trained)
    except NotImplementedError:
        trained_kl = None
    return Codes(posterior, prior, trained, trained_kl)


def log_likelihood_of(model: VAE, x: Tensor, z: Tensor) -> Tensor:
    r""":math:`\log p(x|z)` of data ``(B, ...)`` given codes ``(*, B, J)``; shape ``(*, B)``."""
    likelihood = model.decoder(z)
    return likelihood.log_prob(x.reshape(x.shape[:1] + likelihood.event_shape))


class Chunk(NamedTuple):
    """Sizes of a full chunk: data, draws of each, and how large the largest tensor is for each code."""

    rows: int
    draws: int
    elements: int


def chunk_of(model: VAE, x: Tensor, num_draws: int, other_draws: int) -> Chunk:
    """The chunk for data like x, shape ``(1, ...)``, on their device, which are looked at and their codes decoded.

    Args:
        model: in evaluation mode.
        x: a datum.
        num_draws: of each.
        other_draws: that are taken of a datum for something else, all at once.
    """
    codes = codes_of(model, x)
    one, two = _Sizes(), _Sizes()
    for draws, sizes in ((1, one), (2, two)):
        with sizes:
            _weigh(model, draws, x, codes.posterior, codes.prior, codes.trained if codes.trained_kl is None else None)
    # What grows with the draws is the chunk's, what does not the model's. The same operations, unless the decoder is
    # particular about numbers of draws.
    base = one.seen if len(one.seen) == len(two.seen) else [0] * len(two.seen)
    elements = max(1, *(after - before for before, after in zip(base, two.seen, strict=True)))
    at_once = max(1, _ELEMENTS_AT_ONCE.get(x.device.type, _ELEMENTS_AT_ONCE["cpu"]) // elements)
    draws = min(num_draws, _DRAWS_AT_ONCE, at_once)
    return Chunk(max(1, at_once // max(draws, other_draws)), draws, elements)


class _Sizes(TorchDispatchMode):
    """Takes down how many elements each operation returns."""

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
    r"""What is left of the draws, each of shape ``(B,)`` but for the last.

    Attributes:
        log_likelihood: mean of :math:`\log p(x|z)`.
        log_ratio: mean of :math:`\log q(z|x) - \log p(z)`.
        trained_ratio: the same for the prior as trained; None where its divergence has a closed form.
        log_mean: :math:`\log \frac1K \sum_k p(x|z_k)\,p(z_k)/q(z_k|x)`.
        last: the last code drawn, shape ``(B, J)``.
    """

    log_likelihood: Tensor
    log_ratio: Tensor
    trained_ratio: Tensor | None
    log_mean: Tensor
    last: Tensor


class Weighing:
    """Draws codes of batches of data, and weighs them.

    Args:
        model: in evaluation mode whenever this is called.
        chunk: sizes of a full chunk. Smaller ones, the last of the draws or of the data, are not compiled.
        num_draws: K of each code.
        name: of the work, for a warning.
        compile: whether to.
        after_chunk: called after every chunk with the number of codes in it.
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
        """Whether full chunks are, and capturing them has not been given up."""
        return self._compiled is not None and not self._compiled.is_eager

    def __call__(self, x: Tensor, codes: Codes) -> Weights:
        """Weigh `num_draws` codes of each of the data x, shape ``(B, ...)``."""
        log_likelihood, log_ratio, trained_ratio = x.new_zeros(3, len(x))
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
            None if trained is None else trained_ratio / self._num_draws,
            log_total - math.log(self._num_draws),
            last,
        )

    def _weigh(self, *args: Any) -> tuple[Tensor, ...]:
        return _weigh(self._model, *args)


def _weigh(
    model: VAE, num_draws: int, x: Tensor, posterior: Distribution, prior: Distribution, trained: Distribution | None
) -> tuple[Tensor, ...]:
    """Sums over a chunk's draws, the last of them, and if `trained` is given a sum more."""
    z = posterior.sample((num_draws,))
    log_likelihood = log_likelihood_of(model, x, z)
    log_posterior = posterior.log_prob(z)
    ratio = log_posterior - prior.log_prob(z)
    others = () if trained is None else ((log_posterior - trained.log_prob(z)).sum(0),)
    return log_likelihood.sum(0), ratio.sum(0), torch.logsumexp(log_likelihood - ratio, 0), z[-1], *others


def are_worth_compiling(chunk: Chunk, num_codes: int, device: torch.device) -> bool:
    """Whether so many codes in such chunks are; warns if they are and there is no compiler."""
    num_chunks = num_codes * chunk.elements // _ELEMENTS_AT_ONCE.get(device.type, _ELEMENTS_AT_ONCE["cpu"])
    return is_worth_compiling(num_chunks, device, _SAVED_BY_CHUNK, "chunks of draws")
