r"""The variational autoencoder as a Pyro program: the one place of the library that says `pyro.sample`.

.. math:: z \sim p(z), \quad x \sim p(x|z) \qquad\text{(model)}, \qquad z \sim q(z|x) \quad\text{(guide)}

Encoder, decoder and prior are modules that return distributions; which ones, nothing here asks. A prior may have latent
variables of its own, common to all data (sites outside the plate), and charge the objective a penalty (a factor).

References
    D. P. Kingma, M. Welling (2014), Auto-encoding variational Bayes.
    I. Higgins et al. (2017), beta-VAE.
    F. Tonolini, B. S. Jensen, R. Murray-Smith (2020), Variational sparse coding.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from vsc_pyro._arguments import positive_float, positive_int
from vsc_pyro._scalars import ScalarModule
from vsc_pyro._seeding import alone
from vsc_pyro.distributions import has_mean, inclusion_logits
from vsc_pyro.models.data_checks import as_events, check_finite, check_layout, check_support, inner
from vsc_pyro.models.modes import in_mode
from vsc_pyro.models.param_store import name_in_store, register
from vsc_pyro.models.priors import Prior
from vsc_pyro.models.priors.prior import depends_on_data

if TYPE_CHECKING:
    from vsc_pyro.inference.impute import Imputation

_TINY = 1e-30


class VAE(ScalarModule):
    r"""Variational autoencoder of an encoder, a decoder and a prior.

    Weights start from torch's random numbers: ``torch.manual_seed(0)`` before the parts are built makes them the same
    in every run, whatever `seed` is given to `fit` later.

    Trained by `vsc_pyro.fit`, or by bare Pyro, any number of models beside one another::

        vae.prepare(data)  # what `fit` does first: scale and mean are those of the data
        svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
        svi.step(x)

    In Pyro's parameter store each model has a name of its own, `store_name`. A `vsc_pyro.save_checkpoint` needs no
    store; where Pyro's own file is wanted, these put what it holds into a model that is built alike::

        pyro.get_param_store().save("parameters")  # and in another process
        pyro.get_param_store().load("parameters")
        pyro.module("vae", vae, update_module_params=True)  # the `store_name` of the model that was saved ...
        pyro.clear_param_store()  # ... which need not be that of the model here

    Args:
        encoder: x ``(B, ...)`` -> q(z|x) with `batch_shape` ``(B,)``.
        decoder: z ``(*, J)`` -> p(x|z) with `batch_shape` ``(*)``.
        prior: x -> p(z), with a batch shape that broadcasts to ``(B,)``.
        beta: weight of the KL divergence of codes (Higgins et al., 2017); 1 for the evidence lower bound. A buffer:
            ``vae.beta = 4.0`` changes it, and a schedule may start it at 0.
        num_data: size of the data that x is a minibatch of, which latent variables common to all data are weighed by;
            None if x is all of it. `vsc_pyro.fit` sets it.

    Attributes:
        warmup: factor of `beta`, below 1 while `vsc_pyro.fit` lets the divergence rise; a buffer.

    Raises:
        ValueError: parts that do not fit: codes or data of different shapes, or a posterior whose KL divergence from
            the prior is infinite. Checked at construction where the encoder has an `input_shape`.
    """

    beta: Tensor
    warmup: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: nn.Module,
        beta: float = 1.0,
        num_data: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior
        self.register_scalar("beta", positive_float("beta", beta))
        self.register_scalar("warmup", 1.0)
        self.num_data = None if num_data is None else positive_int("num_data", num_data)
        self._datum_shape: torch.Size | None = None
        if hasattr(encoder, "input_shape"):
            x = self.reference.new_zeros(1, *encoder.input_shape)
            self.check_parts(x)
            self._start_at_the_prior(x)

    def _start_at_the_prior(self, x: Tensor) -> None:
        """Let an encoder of spikes start from the prior's inclusion, unless the prior is made of the encoder itself."""
        own = {id(parameter) for parameter in self.encoder.parameters()}
        if hasattr(self.encoder, "follow") and own.isdisjoint(map(id, self.prior.parameters())):
            with self.evaluating():
                logits = inclusion_logits(self.prior(x))
            if logits is not None:
                self.encoder.follow(logits.sigmoid().reshape(-1, *logits.shape[-1:])[0])

    @property
    def reference(self) -> Tensor:
        """A parameter or buffer; ``x.to(vae.reference)`` puts x on the model's device, in its floating-point type."""
        tensors = itertools.chain(self.parameters(), self.buffers())
        return next((t for t in tensors if t.is_floating_point()), torch.empty(0))

    @property
    def store_name(self) -> str:
        """The model's name in Pyro's parameter store: ``"vae"`` for a process's first to be trained, then ``"vae_2"``.

        The parameters are ``f"{store_name}$$${name}"``. A copy has a name of its own.
        """
        return name_in_store(self)

    def extra_repr(self) -> str:
        return f"beta={round(float(self.beta), 6)}"

    def check_scalar(self, name: str, value: float) -> None:
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")

    def model(self, x: Tensor) -> Tensor:
        """Pyro model of data x, shape ``(B, ...)``; sites ``"z"`` and ``"x"`` in a plate ``"data"``. Returns z.

        Outside the plate: the prior's own latent variables, by their names, and a factor ``"penalty"`` if it has one.
        """
        register(self)
        values = self._sample_hyperparameters(x, 0)
        penalty = self.prior.penalty() if hasattr(self.prior, "penalty") else None
        if penalty is not None:
            pyro.factor("penalty", -len(x) * penalty)
        with pyro.plate("data", x.shape[0], dim=-1):
            with self._weighed_by_beta():
                z = pyro.sample("z", self.prior(x, **values))
            likelihood = self.decoder(z)
            pyro.sample("x", likelihood, obs=as_events(x, likelihood))
        return z

    def guide(self, x: Tensor) -> Tensor:
        """Pyro guide of data x, shape ``(B, ...)``; the latent sites of the model. Returns z."""
        register(self)
        self._sample_hyperparameters(x, 1)
        with pyro.plate("data", x.shape[0], dim=-1), self._weighed_by_beta():
            return pyro.sample("z", self.encoder(x))

    def _weighed_by_beta(self) -> contextlib.AbstractContextManager:
        # Pyro takes no scale of zero.
        return poutine.scale(scale=(self.beta * self.warmup).clamp(min=_TINY))

    def _sample_hyperparameters(self, x: Tensor, role: int) -> dict[str, Tensor]:
        """Draw the prior's own latent variables, from their prior (role 0) or posterior (role 1)."""
        hyperparameters = self.prior.hyperparameters() if hasattr(self.prior, "hyperparameters") else {}
        if not hyperparameters:
            return {}
        with poutine.scale(scale=len(x) / (self.num_data or len(x))):
            return {name: pyro.sample(name, both[role]) for name, both in hyperparameters.items()}

    @property
    def is_bound(self) -> bool:
        """Whether minus the loss bounds the evidence, which a prior that depends on the datum does free of charge.

        A prior's attribute `is_bound` says; without one (or where it is None), a prior does not if its distribution
        depends on the data, or there is one for each datum. (Looked for in data of the encoder's `input_shape`; without
        that, of the shape of the first data that were checked, and before these it is taken for a bound.)
        """
        declared = getattr(self.prior, "is_bound", None)
        if not isinstance(declared, bool | None):
            raise ValueError(
                f"the prior's is_bound must be True, False or None, got {declared!r}; make it an attribute or property"
            )
        return not self._depends_on_data(self.prior) if declared is None else declared

    @property
    def has_marginal(self) -> bool:
        """Whether codes have a distribution before any datum is seen, so that the evidence can be bounded."""
        return self.is_bound or not self._depends_on_data(getattr(self.prior, "marginal", self.prior))

    def _depends_on_data(self, prior: Callable[[Tensor], Distribution]) -> bool:
        if self._datum_shape is None:
            return False
        with alone():
            return depends_on_data(self, prior, self.reference.new_zeros(3, *self._datum_shape))

    def marginal_prior(self, x: Tensor) -> Distribution:
        """The distribution of codes before any datum is seen; x, shape ``(B, ...)``, gives no more than its device.

        Raises:
            ValueError: a prior that depends on the datum, and does not say what there is before.
        """
        if not self.has_marginal:
            raise ValueError(
                f"the prior, {type(self.prior).__name__}, depends on the datum, and this needs the distribution of "
                "codes before any is seen; give it a method marginal(x) that returns that, or an attribute "
                "is_bound = True if its distribution is one and the same for all data"
            )
        return getattr(self.prior, "marginal", self.prior)(x)

    def impute(
        self,
        x: Tensor | np.ndarray,
        mask: Tensor | np.ndarray,
        *,
        num_samples: int = 20,
        num_steps: int = 200,
        num_pseudo_steps: int = 20,
        seed: int = 0,
        progress: bool = False,
    ) -> Imputation:
        """Draw missing pixels, as `vsc_pyro.impute` does."""
        from vsc_pyro.inference.impute import impute  # which is built on models

        return impute(
            self,
            x,
            mask,
            num_samples=num_samples,
            num_steps=num_steps,
            num_pseudo_steps=num_pseudo_steps,
            seed=seed,
            progress=progress,
        )

    def prepare(self, images: Tensor) -> None:
        """Let encoder, decoder and priors that start from training data, shape ``(N, ...)``, look at them; once.

        That is done by a method `prepare` of theirs, or of a `vsc_pyro.Prior` anywhere within. Any other module's
        method of that name is its own.
        """
        parts = (self.encoder, self.decoder, self.prior)
        for module in self.modules():
            if isinstance(module, Prior) or (module in parts and hasattr(module, "prepare")):
                module.prepare(images)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode (hard spikes) without gradients, and afterwards every module's mode as it was."""
        with alone(), in_mode(self, False), torch.no_grad():
            yield

    def check_data(self, x: Tensor) -> None:
        """Raise `ValueError` unless x, shape ``(N, ...)``, is data this model can be trained on or evaluated with.

        That is: finite in the model's precision, of the shape that encoder and decoder take, and within the support of
        the likelihood.
        """
        check_finite(x, self.reference.dtype)
        check_support(x, self.check_parts(x[:1].to(self.reference)), self.reference)

    def check_parts(self, x: Tensor) -> Distribution:
        """Run one datum through all parts and return the likelihood of a code of zeros."""
        if x.shape[1:] != self._datum_shape:
            self._datum_shape = x.shape[1:]
        with self.evaluating():
            try:
                posterior = self.encoder(x)
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"the encoder does not take data of shape (N, {inner(x)}): {error}") from error
            try:
                prior = self.prior(x)
            except RuntimeError as error:
                raise ValueError(f"the prior does not take data of shape (N, {inner(x)}): {error}") from error
            for part, distribution in (("encoder", posterior), ("prior", prior)):
                _check_is_pyro(part, distribution)
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
            _check_is_pyro("decoder", likelihood)
            as_events(x, likelihood)
            check_layout(x, getattr(self.encoder, "input_shape", ()), "an encoder")
            if not has_mean(posterior):
                self._check_decoder_saturates(x, posterior)
            # A pair without closed form is sampled, and the objective says so.
            with contextlib.suppress(NotImplementedError):
                kl_divergence(posterior, prior.expand(posterior.batch_shape))
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


def _check_is_pyro(part: str, distribution: Distribution) -> None:
    if not isinstance(distribution, TorchDistributionMixin):
        raise ValueError(
            f"the {part} must return a Pyro distribution, got {type(distribution).__module__}."
            f"{type(distribution).__name__}; take the class of that name from pyro.distributions"
        )
