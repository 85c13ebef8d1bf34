r"""The variational autoencoder as a Pyro program, and the only file that calls `pyro.sample`.

.. math:: z \sim p(z), \quad x \sim p(x|z) \qquad\text{(model)}, \qquad z \sim q(z|x) \quad\text{(guide)}

Encoder, decoder and prior are modules that return distributions. No code here depends on which ones. A prior may have
latent variables common to all data (sites outside the plate) and a penalty of the objective (a factor).

References
    D. P. Kingma, M. Welling (2014), Auto-encoding variational Bayes.
    I. Higgins et al. (2017), beta-VAE.
    F. Tonolini, B. S. Jensen, R. Murray-Smith (2020), Variational sparse coding.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from vsc_pyro._arguments import positive_float, positive_int, yes_or_no
from vsc_pyro._scalars import ScalarModule, seven_digits
from vsc_pyro._seeding import alone
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import given, has_mean, inclusion_logits
from vsc_pyro.models.data_checks import (
    as_events,
    check_finite,
    check_layout,
    check_support,
    in_memory,
    inner,
    remedy_of_size,
)
from vsc_pyro.models.missing import Missing
from vsc_pyro.models.modes import in_mode, without_autocast
from vsc_pyro.models.param_store import name_in_store, register
from vsc_pyro.models.part_checks import check_are_modules, check_batch, check_is_pyro, check_takes_draws
from vsc_pyro.models.priors import Prior
from vsc_pyro.models.priors.prior import depends_on_data

if TYPE_CHECKING:
    from vsc_pyro.inference.impute import Imputation

_TINY = 1e-30


class VAE(ScalarModule):
    r"""Variational autoencoder of an encoder, a decoder and a prior.

    Args:
        encoder: x ``(B, ...)`` -> q(z|x) with `batch_shape` ``(B,)``.
        decoder: z ``(*, J)`` -> p(x|z) with `batch_shape` ``(*)``.
        prior: x -> p(z), with a batch shape that broadcasts to ``(B,)``.
        beta: weight of the KL divergence of codes (Higgins et al., 2017); 1 for the evidence lower bound. A buffer:
            ``vae.beta = 4.0`` changes it, and a schedule may start it at 0.
        missing: True takes NaN in data as missing values. The likelihood leaves them out, so that bounds are those of
            the observed values; encoder and prior see the mean of the training data in their place. Values must be
            independent given a code, and the context of a row is never missing. `impute` draws missing values.
        num_data: number N of training data. Latent variables common to all data are scaled by B / N in a batch of B
            data; None for N = B. `vsc_pyro.fit` sets it.

    Attributes:
        warmup: factor of `beta`, below 1 during a warm-up of `vsc_pyro.fit`; a buffer.
        training_defaults: defaults of `vsc_pyro.fit` for `objective`, `lr`, `warmup`, `cooldown` and `batch_size`, by
            name, that a subclass declares, such as ``{"lr": 3e-4}``; none here. `lr` may be a function of the number
            of steps.

    Raises:
        ValueError: a part that is no module, or parts that do not fit: codes or data of different shapes, or a
            posterior whose KL divergence from the prior is infinite. Checked at construction if the encoder has an
            `input_shape`.

    **Initial weights** come from torch's random numbers. Call ``torch.manual_seed(0)`` before you build the parts for
    the same weights in every run; the `seed` of `fit` does not affect them.

    **Bare Pyro** trains a model as well, and several models in one process::

        vae.prepare(data)  # standardise by the data, as `fit` does first
        svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
        svi.step(x)

    **Pyro's parameter store** holds each model under its own `store_name`. `vsc_pyro.save_checkpoint` needs no store.
    To load a file of the store into a model with the same architecture::

        pyro.get_param_store().save("parameters")  # in the process that trained
        pyro.get_param_store().load("parameters")  # in another process
        pyro.module("vae", vae, update_module_params=True)  # "vae": the `store_name` of the saved model
        pyro.clear_param_store()  # the model here may have another `store_name`

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> encoder, decoder = vsc.SpikeSlabEncoder(64, 8), vsc.BernoulliDecoder(8, 64)
        >>> vae = vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(8, inclusion=0.1))
        >>> x = torch.rand(5, 64).round()
        >>> vae.guide(x).shape, vae.model(x).shape
        (torch.Size([5, 8]), torch.Size([5, 8]))
    """

    encoder: Any  # attributes of parts are optional, and tested by hasattr
    decoder: Any
    prior: Any
    beta: Tensor
    warmup: Tensor
    training_defaults: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: nn.Module,
        beta: float = 1.0,
        num_data: int | None = None,
        *,
        missing: bool = False,
    ) -> None:
        super().__init__()
        check_are_modules(encoder=encoder, decoder=decoder, prior=prior)
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior
        self.register_scalar("beta", positive_float("beta", beta))
        self.register_scalar("warmup", 1.0)
        self.num_data = None if num_data is None else positive_int("num_data", num_data)
        self._datum_shape: torch.Size | None = None
        self.missing = Missing(getattr(encoder, "input_shape", ())) if yes_or_no("missing", missing) else None
        if self.missing is not None:
            self.missing.attach(encoder, decoder, prior)
        self._attach()
        if hasattr(encoder, "input_shape"):
            x = self.reference.new_zeros(1, *cast("tuple[int, ...]", encoder.input_shape))
            self.check_parts(x)
            self._start_at_the_prior(x)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._attach()  # this model may be a copy

    def _attach(self) -> None:
        if hasattr(self.encoder, "attach"):
            self.encoder.attach(self)

    def _start_at_the_prior(self, x: Tensor) -> None:
        """Let an encoder of spikes start from the prior's inclusion, unless the prior contains the encoder."""
        own = {id(parameter) for parameter in self.encoder.parameters()}
        if hasattr(self.encoder, "follow") and own.isdisjoint(map(id, self.prior.parameters())):
            with self.evaluating():
                logits = inclusion_logits(self.prior(x))
            if logits is not None:
                self.encoder.follow(logits.sigmoid().reshape(-1, *logits.shape[-1:])[0])

    @property
    def reference(self) -> Tensor:
        """A parameter or buffer: ``x.to(vae.reference)`` moves x to the device and floating-point type of the model."""
        tensors = itertools.chain(self.parameters(), self.buffers())
        return next((t for t in tensors if t.is_floating_point()), torch.empty(0))

    @property
    def store_name(self) -> str:
        """Name of the model in Pyro's parameter store.

        The first model trained in a process is ``"vae"``, the next one ``"vae_2"``. A parameter `name` is stored as
        ``f"{store_name}$$${name}"``. A copy of a model gets another name.
        """
        return name_in_store(self)

    def extra_repr(self) -> str:
        return f"beta={seven_digits(self.beta)}"

    def check_scalar(self, name: str, value: float) -> None:
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")

    def model(self, x: Tensor) -> Tensor:
        """Run the Pyro model on data x, shape ``(B, ...)``, and return z.

        Sites ``"z"`` and ``"x"`` are in a plate ``"data"``. Latent variables of the prior, under their own names, and
        its factor ``"penalty"``, if it has them, are outside the plate.
        """
        register(self)
        values = self._sample_hyperparameters(x, 0)
        penalty = self.prior.penalty() if hasattr(self.prior, "penalty") else None
        if penalty is not None:
            pyro.factor("penalty", -len(x) * penalty)
        with pyro.plate("data", x.shape[0], dim=-1):
            with self._weighed_by_beta():
                z = pyro.sample("z", self.prior(x, **values))
            likelihood = given(self.decoder(z), x)
            pyro.sample("x", likelihood, obs=as_events(x, likelihood))
        return z

    def guide(self, x: Tensor) -> Tensor:
        """Run the Pyro guide on data x, shape ``(B, ...)``, and return z. It has the latent sites of `model`."""
        register(self)
        self._sample_hyperparameters(x, 1)
        with pyro.plate("data", x.shape[0], dim=-1), self._weighed_by_beta():
            return pyro.sample("z", self.encoder(x))

    def _weighed_by_beta(self) -> contextlib.AbstractContextManager:
        # Pyro refuses a scale of zero.
        return poutine.scale(scale=(self.beta * self.warmup).clamp(min=max(_TINY, torch.finfo(self.beta.dtype).tiny)))

    def _sample_hyperparameters(self, x: Tensor, role: int) -> dict[str, Tensor]:
        """Draw the latent variables of the prior from their prior (role 0) or posterior (role 1)."""
        hyperparameters = self.prior.hyperparameters() if hasattr(self.prior, "hyperparameters") else {}
        if not hyperparameters:
            return {}
        with poutine.scale(scale=len(x) / (self.num_data or len(x))):
            return {name: pyro.sample(name, both[role]) for name, both in hyperparameters.items()}

    @property
    def is_bound(self) -> bool:
        """True if minus the loss is a lower bound of the log-evidence.

        A prior that depends on the datum is free to match the posterior at no cost, so its objective is no bound. An
        attribute `is_bound` of the prior decides. If it is missing or None, the prior is called on batches that differ,
        and the answer is False if its distribution depends on the batch or is a separate one for each datum. The test
        needs the shape of a datum: the encoder's `input_shape`, or else the shape of the first data that were checked.
        Before that the answer is True.
        """
        declared = getattr(self.prior, "is_bound", None)
        if not isinstance(declared, bool | None):
            raise ValueError(
                f"the prior's is_bound must be True, False or None, got {declared!r}; make it an attribute or property"
            )
        return not self._depends_on_data(self.prior) if declared is None else declared

    @property
    def has_marginal(self) -> bool:
        """True if the prior has a distribution of codes that does not depend on the datum."""
        return self.is_bound or not self._depends_on_data(getattr(self.prior, "marginal", self.prior))

    def _depends_on_data(self, prior: Callable[[Tensor], Distribution]) -> bool:
        if self._datum_shape is None:
            return False
        with alone():
            return depends_on_data(self, prior, self.reference.new_zeros(3, *self._datum_shape))

    def marginal_prior(self, x: Tensor) -> Distribution:
        """Return the distribution of codes without knowledge of a datum; only device and size of x ``(B, ...)`` count.

        Raises:
            ValueError: a prior that depends on the datum and has no method `marginal` for this distribution.
        """
        if not self.has_marginal:
            raise ValueError(
                f"the prior, {type(self.prior).__name__}, depends on the datum, and this needs the distribution of "
                "codes before any is seen; give it a method marginal(x) that returns that distribution, or an "
                "attribute is_bound = True if its distribution is the same for all data"
            )
        return getattr(self.prior, "marginal", self.prior)(x)

    def impute(self, x: Tensor | np.ndarray, mask: Tensor | np.ndarray | None = None, **options: Any) -> Imputation:
        """Draw missing pixels: ``vsc_pyro.impute(vae, x, mask, **options)``, see `vsc_pyro.impute`."""
        from vsc_pyro.inference.impute import impute  # inference imports models

        return impute(self, x, mask, **options)

    def save(self, directory: str | os.PathLike, **options: Any) -> Path:
        """Write the model to a folder: ``vsc_pyro.save(vae, directory, **options)``, see `vsc_pyro.save`."""
        from vsc_pyro.training.saving import save  # training imports models

        return save(self, directory, **options)

    def prepare(self, images: Dataset | Tensor | np.ndarray) -> None:
        """Show training data, shape ``(N, ...)``, to the parts that initialise themselves from data.

        It calls `prepare` of encoder, decoder and prior, and of every `vsc_pyro.Prior` within them. A method of that
        name of any other module is not called. A second call has no effect on the parts of this library.
        """
        images = in_memory(images).images.to(self.reference)
        self.check_data(images)
        parts = (self.encoder, self.decoder, self.prior)
        spread = images
        if self.missing is not None:
            images, spread = self.missing.prepare(images)
        for module in self.modules():
            prepare: Any = getattr(module, "prepare", None)
            if prepare is not None and (isinstance(module, Prior) or module in parts):
                prepare(spread if module is self.decoder else images)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within the context: evaluation mode (hard spikes), no gradients, no autocast; then each module's own mode."""
        with alone(), in_mode(self, False), torch.no_grad(), without_autocast(self.reference.device):
            yield

    def check_data(self, x: Tensor) -> None:
        """Raise `ValueError` unless the model can be trained or evaluated on data x, shape ``(N, ...)``.

        Data must be finite in the model's precision (or NaN, for a model with ``missing=True``), have the shape that
        encoder and decoder take, and lie in the support of the likelihood.
        """
        self.check_finite(x)
        check_support(x, self.check_parts(x[:1].to(self.reference)), self.reference)

    def check_finite(self, x: Tensor) -> None:
        """Raise `ValueError` unless data x ``(N, ...)`` are finite, or NaN for a model with ``missing=True``."""
        # An encoder that refines under its model needs all values of a datum.
        can = _takes_missing(type(self)) and not hasattr(self.encoder, "attach")
        remedy = ", or, if NaN stands for missing values, build the model with VAE(..., missing=True)" if can else ""
        check_finite(x, self.reference.dtype, self.missing is not None, remedy)

    def check_parts(self, x: Tensor) -> Distribution:
        """Run one datum through all parts and return the likelihood of a code of zeros."""
        with self.evaluating():
            try:
                posterior = self.encoder(x)
            except (RuntimeError, ValueError) as error:
                shape = getattr(self.encoder, "input_shape", x.shape[1:])
                if math.prod(shape) != x[0].numel():
                    reason = f"it takes data of shape {tuple(shape)}; {remedy_of_size(x, shape)}"
                elif not x.square().sum().isfinite():
                    reason = (
                        f"{x.dtype} does not hold the squares of values such as {float(x.abs().max()):.3g}; rescale"
                    )
                else:
                    reason = error
                raise ValueError(f"the encoder does not take data of shape (N, {inner(x)}): {reason}") from error
            try:
                prior = self.prior(x)
            except RuntimeError as error:
                raise ValueError(f"the prior does not take data of shape (N, {inner(x)}): {error}") from error
            for part, distribution in (("encoder", posterior), ("prior", prior)):
                check_is_pyro(part, distribution)
            check_batch("encoder", posterior, "x", (1,))
            if posterior.event_shape != prior.event_shape:
                raise ValueError(
                    f"encoder and prior must have the same number of latents, got codes of shape "
                    f"{tuple(posterior.event_shape)} and {tuple(prior.event_shape)}; pass the same latent_dim to both"
                )
            try:
                likelihood = self.decoder(x.new_zeros(1, *posterior.event_shape))
            except RuntimeError as error:
                raise ValueError(
                    f"the decoder does not take the encoder's codes of shape {tuple(posterior.event_shape)}; "
                    f"pass the same latent_dim to both ({error})"
                ) from error
            check_is_pyro("decoder", likelihood)
            check_batch("decoder", likelihood, "z", (1,))
            as_events(x, likelihood)
            check_takes_draws(self.decoder, x.new_zeros(2, 1, *posterior.event_shape))
            check_layout(x, getattr(self.encoder, "input_shape", ()), "an encoder")
            if not has_mean(posterior):
                self._check_decoder_saturates(x, posterior)
            # The objective samples a divergence without closed form, and warns of it.
            with contextlib.suppress(NotImplementedError):
                kl_divergence(posterior, prior.expand(posterior.batch_shape))
        if x.shape[1:] != self._datum_shape:
            self._datum_shape = x.shape[1:]
        return likelihood

    def _check_decoder_saturates(self, x: Tensor, posterior: Distribution) -> None:
        near, far = (
            likelihood.log_prob(as_events(x, likelihood)).abs().max()
            for likelihood in (self.decoder(_far_out(x, posterior.event_shape, d)) for d in (1e4, 1e7))
        )
        if not far < 30 * near:
            raise ValueError(
                "the posterior has no mean (its tails are Cauchy's) and the decoder's loss grows without bound with "
                "the code, so that the expected loss is infinite and there is no bound to train; take a decoder whose "
                "first layer saturates (activation='tanh'), or another posterior"
            )


def _far_out(x: Tensor, shape: torch.Size, distance: float) -> Tensor:
    signs = 1 - 2 * (torch.arange(shape.numel(), device=x.device) % 2)
    return distance * torch.stack([signs, -signs, signs.abs(), -signs.abs()]).to(x).reshape(4, 1, *shape)


def check_is_vae(model: object) -> None:
    """Raise `ValueError` unless `model` is a `VAE`."""
    if not isinstance(model, VAE):
        raise ValueError(
            f"model must be a VAE, got {type(model).__name__}; a sparse autoencoder has the codes encode(x), and "
            "evaluate_dictionary evaluates it"
        )


@functools.cache
def _takes_missing(cls: type[VAE]) -> bool:
    return "missing" in inspect.signature(cls).parameters
