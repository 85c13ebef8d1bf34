"""Contestants that train the same VAE: this library, stock Pyro, PyTorch written by hand, and pythae.

All start from the same weights, and Adam minimises minus the ELBO, summed over the minibatch. The library and the
hand-written code have the KL divergence in closed form; stock Pyro samples it, as in its VAE example.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pyro
import torch
from measure import Scope, UnavailableError, temporary_folder
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, elu, logsigmoid

import vsc_pyro as vsc
from vsc_pyro.acceleration import CompiledSVI, Replay, capture_on, missing_compiler
from vsc_pyro.models.param_store import unwatched
from vsc_pyro.models.precision import networks_in

SHAPE = (1, 28, 28)
PIXELS = math.prod(SHAPE)
LR = 1e-3
INCLUSION = 0.1
TEMPERATURE = 0.5


class Contestant(NamedTuple):
    """A training step and the context that it needs.

    Attributes:
        step: function that takes a training step on a minibatch, and returns minus the ELBO before the step, summed
            over data.
        scope: function that makes the context of any number of steps.
    """

    step: Callable[[Tensor], Tensor | float]
    scope: Scope = contextlib.nullcontext


class Setting(NamedTuple):
    """Sizes of a VAE with one hidden layer in each network, and of its minibatch; `dense`: normal codes."""

    latent_dim: int = 50
    hidden: int = 400
    batch_size: int = 200
    dense: bool = False

    def __str__(self) -> str:
        kind = "dense" if self.dense else "spike-and-slab"
        return f"{PIXELS}-{self.hidden}-{self.latent_dim}, batch {self.batch_size}, {kind}"

    @property
    def heads(self) -> int:
        return 2 if self.dense else 3

    @property
    def flops(self) -> int:
        """Return the operations of a step's matrix products: forward, and backward without gradients by the data."""
        first = PIXELS * self.hidden
        others = self.hidden * (self.heads * self.latent_dim + self.latent_dim + PIXELS)
        return self.batch_size * (4 * first + 6 * others)


class Place(NamedTuple):
    """A device; without `inductor`, steps are captured and not compiled, so that tests take seconds."""

    device: torch.device
    inductor: bool = True


# This library ---------------------------------------------------------------------------------------------------------


def library_model(setting: Setting, place: Place) -> vsc.VAE:
    """Return the model that all contestants train, with the same weights in each call."""
    torch.manual_seed(0)
    latent_dim, hidden = setting.latent_dim, setting.hidden
    if setting.dense:
        encoder = vsc.NormalEncoder(SHAPE, latent_dim, hidden)
        prior = vsc.NormalPrior(latent_dim)
    else:
        encoder = vsc.SpikeSlabEncoder(SHAPE, latent_dim, hidden, gate="concrete")
        prior = vsc.SpikeSlabPrior(latent_dim, INCLUSION)
    return vsc.VAE(encoder, vsc.BernoulliDecoder(latent_dim, SHAPE, hidden), prior).to(place.device)


def library(setting: Setting, place: Place) -> Contestant:
    """Return steps of `vsc_pyro.SVI` as in `fit`, without Pyro's checks."""
    model = library_model(setting, place)
    svi = vsc.SVI(model.model, model.guide, _fused_adam(model), vsc.AnalyticELBO())
    return Contestant(svi.step, own_store(validate=False))


def library_compiled(
    setting: Setting, place: Place, precision: str = "float32", is_replayed: bool = True
) -> Contestant:
    """Return steps of `CompiledSVI` as in `fit`: on a GPU, replays of a CUDA graph that includes Adam's update."""
    check_compiler(place)
    return compiled_steps(library_model(setting, place), vsc.AnalyticELBO(), place, precision, is_replayed)


def compiled_steps(
    model: vsc.VAE,
    objective: pyro.infer.ELBO,
    place: Place,
    precision: str = "float32",
    is_replayed: bool = True,
) -> Contestant:
    """Return steps of `model` by a `CompiledSVI`; on a GPU, if `is_replayed`, as CUDA graphs of whole steps."""
    backend = "inductor" if place.inductor else "eager"
    svi = CompiledSVI(model.model, model.guide, _fused_adam(model), objective, backend=backend)
    capture = capture_on(place.device) if is_replayed else None
    replay = None if capture is None else Replay(svi, capture)

    def step(x: Tensor) -> Tensor:
        loss = svi.step(x) if replay is None else replay.step(x)
        if svi.is_eager or (replay is not None and not replay.is_replaying):
            raise RuntimeError("the step was not compiled; its time would have the wrong name in the table")
        return loss

    store = own_store(validate=False)

    @contextlib.contextmanager
    def scope() -> Iterator[None]:
        with store(), networks_in(model, precision):
            yield

    return Contestant(step, scope)


def library_launched(setting: Setting, place: Place) -> Contestant:
    """Return compiled steps on a GPU that launch each kernel, without a CUDA graph."""
    _check_cuda(place)
    return library_compiled(setting, place, is_replayed=False)


def _check_cuda(place: Place) -> None:
    if place.device.type != "cuda":
        raise UnavailableError("needs a CUDA device")


# Stock Pyro -----------------------------------------------------------------------------------------------------------


def stock_pyro(setting: Setting, place: Place, validate: bool = True) -> Contestant:
    """Return steps of `pyro.infer.SVI`, `pyro.optim.Adam` and `Trace_ELBO`; Pyro's checks are on by default."""
    vae = library_model(setting, place)

    # Model and guide register one network each, as in Pyro's example; the library's own programs register both.
    def model(x: Tensor) -> Tensor:
        pyro.module("decoder", vae.decoder)
        with unwatched():
            return vae.model(x)

    def guide(x: Tensor) -> Tensor:
        pyro.module("encoder", vae.encoder)
        with unwatched():
            return vae.guide(x)

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": LR}), Trace_ELBO())
    return Contestant(svi.step, own_store(validate))


def own_store(validate: bool) -> Scope:
    """Return a scope with its own parameter store, the same in each call, and with Pyro's checks on or off."""
    store = pyro.get_param_store()
    with store.scope() as own:
        pass

    @contextlib.contextmanager
    def scope() -> Iterator[None]:
        with store.scope(own), pyro.validation_enabled(validate):
            yield

    return scope


# PyTorch, by hand -----------------------------------------------------------------------------------------------------


class HandWritten(nn.Module):
    """The same VAE without a library: same arithmetic, same random numbers in the same order."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.dense = setting.dense
        self.heads = setting.heads
        hidden, latent_dim = setting.hidden, setting.latent_dim
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(PIXELS, hidden), nn.SiLU(), nn.Linear(hidden, self.heads * latent_dim)
        )
        self.decoder = nn.Sequential(nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, PIXELS))

    def posterior(self, x: Tensor) -> list[Tensor]:
        """Return location and scale of the slab, and with spikes the log-odds of inclusion."""
        loc, log_squared_scale, *logits = self.encoder(x).chunk(self.heads, -1)
        return [loc, 1 + elu(0.5 * log_squared_scale) + 1e-4, *logits]

    def loss(self, x: Tensor) -> Tensor:
        """Return minus the ELBO, summed over data."""
        loc, scale, *logits = self.posterior(x)
        slab_kl = 0.5 * (scale.square() + loc.square() - 1) - scale.log()
        if self.dense:
            z, kl = loc + torch.randn_like(loc) * scale, slab_kl
        else:
            (logits,) = logits
            perturbed = logits + torch.logit(torch.rand_like(logits), eps=torch.finfo(logits.dtype).tiny)
            hard = (perturbed.detach() > 0).to(logits.dtype)
            soft = torch.sigmoid(perturbed / TEMPERATURE)
            z = (hard + (soft - soft.detach())) * (loc + torch.randn_like(loc) * scale)
            on = logsigmoid(logits) - math.log(INCLUSION)
            off = logsigmoid(-logits) - math.log1p(-INCLUSION)
            inclusion = torch.sigmoid(logits)
            kl = inclusion * (slab_kl + on) + (1 - inclusion) * off
        return binary_cross_entropy_with_logits(self.decoder(z), x.flatten(1), reduction="sum") + kl.sum()


def hand_written(setting: Setting, place: Place) -> HandWritten:
    """Return the network with the weights of `library_model`."""
    net = HandWritten(setting).to(place.device)
    weights = library_model(setting, place).parameters()
    with torch.no_grad():
        for own, other in zip(net.parameters(), weights, strict=True):
            own.copy_(other)
    return net


def pytorch(setting: Setting, place: Place, compiled: bool = False) -> Contestant:
    """Return steps of fused Adam on the hand-written loss."""
    net = hand_written(setting, place)
    optimizer = _fused_adam(net)
    loss_of = net.loss
    if compiled:
        check_compiler(place)
        # Without dynamic=False, torch.compile makes one graph for any size when it meets a second setting.
        loss_of = torch.compile(net.loss, backend="inductor" if place.inductor else "aot_eager", dynamic=False)

    return steps_by_hand(loss_of, optimizer)


def steps_by_hand(loss_of: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer) -> Contestant:
    """Return steps of an optimiser on a loss, without a library."""

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(x)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Contestant(step)


def pytorch_graph(setting: Setting, place: Place) -> Contestant:
    """Return the hand-written step as a CUDA graph, with random numbers and Adam in it."""
    _check_cuda(place)
    net = hand_written(setting, place)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, fused=True, capturable=True)
    images = torch.zeros(setting.batch_size, *SHAPE, device=place.device)

    def whole() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = net.loss(images)
        loss.backward()
        optimizer.step()
        return loss.detach()

    weights = [parameter.detach().clone() for parameter in net.parameters()]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            whole()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = whole()
    with torch.no_grad():  # warm-up and capture have trained the network
        for parameter, weight in zip(net.parameters(), weights, strict=True):
            parameter.copy_(weight)
            for moment in optimizer.state[parameter].values():
                moment.zero_()

    def step(x: Tensor) -> Tensor:
        images.copy_(x)
        graph.replay()
        return loss

    step.held = net, optimizer  # the graph does not keep their memory alive
    return Contestant(step)


# pythae ---------------------------------------------------------------------------------------------------------------


def pythae_trainer(setting: Setting, place: Place, images: Tensor):  # noqa: ANN201 - the package is optional
    """Return pythae's `BaseTrainer` of its `VAE` with the same network, on binary images.

    The scale of its posterior is the exponential of the head's output, and its loss is averaged over data.
    """
    model = pythae_model(setting, place)
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    logging.disable(logging.WARNING)  # pythae's announcements
    trainer = BaseTrainer(
        model,
        BaseDataset(images, torch.zeros(len(images))),
        training_config=BaseTrainerConfig(
            output_dir=str(temporary_folder()),
            per_device_train_batch_size=setting.batch_size,
            learning_rate=LR,
            no_cuda=place.device.type != "cuda",
        ),
    )
    trainer.prepare_training()
    trainer.callback_handler.callbacks.clear()  # its progress bar
    logging.disable(logging.NOTSET)
    return trainer


def pythae_model(setting: Setting, place: Place) -> nn.Module:
    """Return pythae's `VAE` with the network of `hand_written`."""
    if not setting.dense:
        raise UnavailableError("has no spike-and-slab codes")
    if importlib.util.find_spec("pythae") is None:
        raise UnavailableError("NOT INSTALLED (pip install pythae); the comparison is without it")
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    net = hand_written(setting, place)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = net.encoder

        def forward(self, x: Tensor) -> ModelOutput:
            loc, log_variance = self.network(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = net.decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.network(z).sigmoid().unflatten(-1, SHAPE))

    config = VAEConfig(input_dim=SHAPE, latent_dim=setting.latent_dim, reconstruction_loss="bce")
    return VAE(config, Encoder(), Decoder())


def pythae(setting: Setting, place: Place) -> Contestant:
    """Return steps of pythae's trainer."""
    trainer = pythae_trainer(setting, place, torch.zeros(setting.batch_size, *SHAPE))
    trainer.model.train()

    def step(x: Tensor) -> float:
        output = trainer.model({"data": x}, epoch=1, dataset_size=len(x), uses_ddp=False)
        trainer._optimizers_step(output)
        return output.loss.item() * len(x)

    return Contestant(step)


def _fused_adam(module: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=LR, fused=True)


def check_compiler(place: Place) -> None:
    """Raise `UnavailableError` if `place` asks for a compiler and there is none."""
    if place.inductor and (missing := missing_compiler(place.device)):
        raise UnavailableError(missing)


STOCK, BY_HAND, GRAPH = "Pyro", "PyTorch", "PyTorch, CUDA graph"
CONTESTANTS: dict[str, Callable[[Setting, Place], Contestant]] = {
    "vsc_pyro": library,
    "vsc_pyro, compiled": library_compiled,
    "vsc_pyro, bfloat16": functools.partial(library_compiled, precision="bfloat16"),
    "vsc_pyro, compiled, launched": library_launched,
    STOCK: stock_pyro,
    "Pyro, unchecked": functools.partial(stock_pyro, validate=False),
    BY_HAND: pytorch,
    "PyTorch, compiled": functools.partial(pytorch, compiled=True),
    GRAPH: pytorch_graph,
    "pythae": pythae,
}
