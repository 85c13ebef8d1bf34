"""`SpikeSlabCoder`: variational sparse coding as an estimator of scikit-learn."""

from __future__ import annotations

import copy
import numbers
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from vsc_pyro._arguments import choice, positive_float, positive_int
from vsc_pyro._seeding import seeded
from vsc_pyro.datasets.numbers import as_array, as_numbers
from vsc_pyro.distributions import LinearNormal, noise_scale
from vsc_pyro.evaluation.bounds import bounds, expected_log_likelihood
from vsc_pyro.evaluation.codes import codes
from vsc_pyro.evaluation.probes import encode
from vsc_pyro.models.decoders import BernoulliDecoder, ContinuousBernoulliDecoder, NormalDecoder
from vsc_pyro.models.encoders import SpikeSlabEncoder
from vsc_pyro.models.priors import SpikeSlabPrior
from vsc_pyro.models.vae import VAE
from vsc_pyro.training.fit import fit

_DECODERS = {
    "normal": NormalDecoder,
    "bernoulli": BernoulliDecoder,
    "continuous-bernoulli": ContinuousBernoulliDecoder,
}
_TYPES: Any = (np.float64, np.float32)
_ROWS_AT_ONCE = 1000
_SEEDS = 2**31 - 1


class SpikeSlabCoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Sparse codes with probabilities, as a transformer of scikit-learn.

    .. math:: z_j \sim \alpha F(z_j) + (1 - \alpha)\, \delta_0, \qquad x \sim p(x|z), \qquad
        q(z|x) = \prod_j \gamma_j F(z_j; \mu_j, \sigma_j) + (1 - \gamma_j)\, \delta_0.

    `fit` builds a `vsc_pyro.VAE` of a `SpikeSlabEncoder`, a decoder and a `SpikeSlabPrior`, and trains it by
    `vsc_pyro.fit`. The default, a linear decoder with normal noise, is sparse coding and is trained without sampling
    (``objective="exact"``). `transform` returns posterior means and `predict_inclusion` the probabilities
    :math:`\gamma` that latents are on.

    Training runs in float32 and everything after it in the type of the training data, float32 or float64. With an
    integer `random_state`, global random states do not change, and equal data give codes that are equal to the last
    bit, on one machine with the same number of threads.

    Args:
        n_components: number of latents J; None for the number of features.
        inclusion: prior probability :math:`\alpha` that a latent is on; None for .1, or what `expected_active` says.
        expected_active: expected number of latents that are on, in place of `inclusion`.
        slab: family F of the slabs in prior and posterior, see `SpikeSlabEncoder`. ``"truncated-normal"`` makes codes
            positive.
        decoder: ``"normal"``; ``"bernoulli"`` or ``"continuous-bernoulli"``, for features in [0, 1]; or a function
            ``(n_components, n_features) -> torch.nn.Module`` that returns a decoder as `vsc_pyro.VAE` takes it.
        hidden: widths of the hidden layers of a named decoder; ``()`` for a linear one.
        encoder_hidden: widths of the encoder's hidden layers; None for ``(400,)``.
        noise: standard deviation of ``decoder="normal"``: a number, in units of the data, which training keeps;
            ``"learned"``, one for all features; None to learn it if there are fewer latents than features, else for 0.4
            times the standard deviation of the training data, see `NormalDecoder`.
        threshold: None to let `transform` return posterior means. A probability in [0, 1), such as .5, for sparse codes
            with exact zeros: the centre of the slab where :math:`\gamma` exceeds it, 0 elsewhere.
        max_iter: epochs of `fit`, which takes them all; None for 50, or more if 50 make fewer than 2,000 steps. The
            bound rises ever more slowly and reaches no plateau by which a `ConvergenceWarning` could be judged: compare
            the `score` of held-out data for larger numbers.
        batch_size: data per step.
        learning_rate: of Adam.
        device: ``"auto"``: the GPU, else the CPU. Or any torch device.
        random_state: seed of initial weights, training, `sample`, and `score_samples` where it draws codes: an
            integer, a `numpy.random.RandomState`, or None for NumPy's global one.
        verbose: True shows a progress bar.

    Attributes:
        model_: the trained `vsc_pyro.VAE`, which every function of the library takes.
        n_iter_: number of epochs, those of `partial_fit` included.
        n_features_in_, feature_names_in_: number of features, and their names if the data are a frame with names.

    Raises:
        ValueError: from `fit` and `partial_fit`, before training: an argument out of range, `noise` without
            ``decoder="normal"``, `hidden` with a function as `decoder`, or data outside the support of the likelihood.
        sklearn.exceptions.NotFittedError: from all other methods, before `fit`.

    References:
        F. Tonolini, B. S. Jensen, R. Murray-Smith (2020), Variational sparse coding.

    Example:
        >>> import vsc_pyro as vsc
        >>> from sklearn.datasets import load_digits
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> x = load_digits().data
        >>> coder = vsc.SpikeSlabCoder(16, expected_active=4, threshold=0.5, max_iter=2, random_state=0)
        >>> codes = make_pipeline(StandardScaler(), coder).fit_transform(x)
        >>> codes.shape, bool((codes == 0).any()), coder.components_.shape
        ((1797, 16), True, (16, 64))
    """

    model_: VAE
    n_iter_: int
    n_features_in_: int

    def __init__(
        self,
        n_components: int | None = None,
        *,
        inclusion: float | None = None,
        expected_active: float | None = None,
        slab: str = "normal",
        decoder: str | Callable[[int, int], nn.Module] = "normal",
        hidden: int | Sequence[int] = (),
        encoder_hidden: int | Sequence[int] | None = None,
        noise: float | str | None = None,
        threshold: float | None = None,
        max_iter: int | None = None,
        batch_size: int = 200,
        learning_rate: float = 1e-3,
        device: str | torch.device = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool | int = False,
    ) -> None:
        self.n_components = n_components
        self.inclusion = inclusion
        self.expected_active = expected_active
        self.slab = slab
        self.decoder = decoder
        self.hidden = hidden
        self.encoder_hidden = encoder_hidden
        self.noise = noise
        self.threshold = threshold
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: Any = None) -> SpikeSlabCoder:  # noqa: N803 scikit-learn's name
        """Build a model and train it on X, shape ``(n_samples, n_features)``; y is ignored."""
        data = self._checked(X, reset=True)
        epochs = None if self.max_iter is None else positive_int("max_iter", self.max_iter)
        return self._train(self._new_model(), data, epochs=epochs)

    def partial_fit(self, X: ArrayLike, y: Any = None) -> SpikeSlabCoder:  # noqa: N803
        """Train for one more epoch, on X of shape ``(n_samples, n_features)``; the first call builds the model.

        Each call starts the optimiser anew, at the full `learning_rate`. The first data set the units of encoder and
        decoder.
        """
        is_first = not hasattr(self, "model_")
        data = self._checked(X, reset=is_first)
        model, before = (self._new_model(), 0) if is_first else (self.model_, self.n_iter_)
        return self._train(model, data, before, epochs=1, cooldown=0.0)

    def _new_model(self) -> VAE:
        threshold, features = self.threshold, self.n_features_in_
        if threshold is not None and not (isinstance(threshold, numbers.Real) and 0 <= threshold < 1):
            raise ValueError(f"threshold must be None or a probability from 0 to below 1, got {threshold!r}")
        latents = features if self.n_components is None else positive_int("n_components", self.n_components)
        self._random = check_random_state(self.random_state)
        with torch.inference_mode(False), seeded(self._random.randint(_SEEDS), torch.device("cpu")):
            encoder = SpikeSlabEncoder(features, latents, self.encoder_hidden, slab=self.slab)
            prior = SpikeSlabPrior(latents, self.inclusion, slab=self.slab, expected_active=self.expected_active)
            return VAE(encoder, self._new_decoder(latents, features), prior)

    def _new_decoder(self, latents: int, features: int) -> nn.Module:
        decoder, noise, options = self.decoder, self.noise, {}
        if noise is not None and decoder != "normal":
            raise ValueError(f"noise={noise!r} is for decoder='normal', got decoder={decoder!r}; leave it out")
        if isinstance(noise, str):
            options["variance"] = choice("noise", noise, {"learned": "shared"})
        elif noise is not None:
            options.update(scale=positive_float("noise", noise), variance="fixed")
        if not callable(decoder):
            return choice("decoder", decoder, _DECODERS)(latents, features, self.hidden, **options)
        if self.hidden != ():
            raise ValueError(f"hidden={self.hidden!r} is for a named decoder, got a function; let it build the layers")
        return decoder(latents, features)

    def _train(self, model: VAE, data: NDArray, before: int = 0, **options: Any) -> SpikeSlabCoder:
        """Train a model of `before` epochs; `options` are those of `vsc_pyro.fit`."""
        dtype, weights = model.reference.dtype, copy.deepcopy(model.state_dict())
        try:
            history = fit(
                model.float(),
                as_numbers(data),
                batch_size=self.batch_size,
                lr=positive_float("learning_rate", self.learning_rate),
                device=self.device,
                seed=self._random.randint(_SEEDS),
                progress=bool(self.verbose),
                **options,
            )
        except Exception:
            model.to(dtype).load_state_dict(weights)
            raise
        # In float32 a code would depend, in its last digits, on the data beside it.
        self.model_ = model.to(as_numbers(data[:0]).dtype)
        self.n_iter_ = before + len(history)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def transform(self, X: ArrayLike) -> NDArray:  # noqa: N803
        """Return the codes of X, shape ``(n_samples, n_components)``: posterior means, or as `threshold` says."""
        data = self._checked(X)
        if self.threshold is None:
            return _as_array(encode(self.model_, data), data)
        return _as_array(codes(self.model_, data, threshold=self.threshold).hard, data)

    def predict_inclusion(self, X: ArrayLike) -> NDArray:  # noqa: N803
        r"""Return the probabilities :math:`\gamma` that latents are on, shape ``(n_samples, n_components)``."""
        data = self._checked(X)
        return _as_array(codes(self.model_, data).inclusion, data)

    def inverse_transform(self, X: ArrayLike) -> NDArray:  # noqa: N803
        """Return the mean of the data given codes X: ``(n_samples, n_components) -> (n_samples, n_features)``.

        Raises:
            ValueError: codes of another number of latents.
        """
        check_is_fitted(self)
        z: NDArray = check_array(X, dtype=_TYPES)
        if z.shape[1] != self._n_features_out:
            raise ValueError(f"X must be codes of {self._n_features_out} latents, got {z.shape[1]}; see transform")
        with self.model_.evaluating():
            batches = as_numbers(z).split(_ROWS_AT_ONCE)
            means = [self.model_.decoder(batch.to(self.model_.reference)).mean for batch in batches]
        return _as_array(torch.cat(means).flatten(1), z)

    def score_samples(self, X: ArrayLike) -> NDArray:  # noqa: N803
        """Return the evidence lower bound of each datum, in nats, with hard spikes, shape ``(n_samples,)``.

        It is in closed form for a linear normal decoder. Otherwise it is that of `vsc_pyro.bounds`, a mean over 100
        drawn codes.
        """
        data = self._checked(X)
        if not isinstance(self._likelihood_at_zero(), LinearNormal):
            return _as_array(bounds(self.model_, data, seed=self._seed()).elbo, data)
        with self.model_.evaluating():
            parts = [self._closed_bounds(x.to(self.model_.reference)) for x in as_numbers(data).split(_ROWS_AT_ONCE)]
        return _as_array(torch.cat(parts), data)

    def _closed_bounds(self, x: Tensor) -> Tensor:
        """Return the bounds of data ``(B, n_features)`` under a linear normal decoder."""
        posterior = self.model_.encoder(x)
        divergence = kl_divergence(posterior, self.model_.prior(x).expand(posterior.batch_shape))
        return cast("Tensor", expected_log_likelihood(self.model_, x)) - divergence

    def score(self, X: ArrayLike, y: Any = None) -> float:  # noqa: N803
        """Return the mean of `score_samples`; y is ignored."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> NDArray:
        """Draw data from the model, noise included, shape ``(n_samples, n_features)``.

        An integer `random_state` draws the same data in each call.
        """
        check_is_fitted(self)
        model, n_samples = self.model_, positive_int("n_samples", n_samples)
        with model.evaluating(), seeded(self._seed(), model.reference.device):
            z = model.prior(model.reference.new_zeros(1, self.n_features_in_)).sample((n_samples,))
            return model.decoder(z).sample().flatten(1).cpu().numpy()

    @property
    def components_(self) -> NDArray:
        """The atoms of a linear decoder, shape ``(n_components, n_features)``, in units of the data or of logits."""
        check_is_fitted(self)
        decoder = self.model_.decoder
        if not getattr(decoder, "is_linear", False):
            raise AttributeError("components_ are the atoms of a linear decoder, and this one has hidden layers")
        return decoder.dictionary.detach().flatten(1).cpu().numpy().copy()

    @property
    def noise_variance_(self) -> NDArray:
        """The variance of a normal decoder's noise, shape ``(n_features,)``."""
        check_is_fitted(self)
        scale = noise_scale(self._likelihood_at_zero())
        if scale is None:
            raise AttributeError("noise_variance_ is that of a normal decoder, and this decoder has no scale")
        return scale.square().flatten().cpu().numpy()

    def _likelihood_at_zero(self) -> Distribution:
        with self.model_.evaluating():
            return self.model_.decoder(self.model_.reference.new_zeros(1, self._n_features_out))

    @property
    def _n_features_out(self) -> int:
        return self.model_.prior.latent_dim

    def _checked(self, data: Any, reset: bool = False) -> NDArray:
        """Return data as an array, and with `reset` set the number and names of features."""
        if not reset:
            check_is_fitted(self)
        if np.ma.is_masked(data):
            as_array(data, "X")  # which refuses values under the mask, where scikit-learn drops the mask
        if isinstance(data, Tensor):
            data = as_numbers(data, "X").detach().cpu()
        return cast("NDArray", validate_data(self, data, dtype=_TYPES, reset=reset))

    def _seed(self) -> int:
        return check_random_state(self.random_state).randint(_SEEDS)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _as_array(values: Tensor, data: NDArray) -> NDArray:
    return values.cpu().numpy().astype(data.dtype, copy=False)
