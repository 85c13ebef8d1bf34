"""Write a trained model as a sparse autoencoder."""

from __future__ import annotations

import copy
import inspect
import os
from typing import Any, cast

import torch
from torch import Tensor

from vsc_pyro._arguments import yes_or_no
from vsc_pyro._files import expanded
from vsc_pyro._recorded import arguments_of
from vsc_pyro.distributions import LinearNormal, inclusion_logits
from vsc_pyro.evaluation.matching import unit_rows
from vsc_pyro.models import encoders
from vsc_pyro.models.encoders.base import Encoder
from vsc_pyro.models.sparse_dictionary import SparseDictionary
from vsc_pyro.models.vae import VAE, check_is_vae
from vsc_pyro.sae.files import CFG, POSTERIOR, WEIGHTS, safetensors_torch, write_cfg, write_tensors
from vsc_pyro.training.resumption import plain

FORMAT = 1
# The format that is written is that of this version of SAELens; files without a version have an older one.
_SAE_LENS_VERSION = "6.54.0"
# Step of a derivative, in units of the encoder's input.
_STEP = 1e-4

# Encoders that a file can name.
ENCODERS: dict[str, type[Encoder]] = {
    name: found
    for name in encoders.__all__
    if inspect.isclass(found := getattr(encoders, name)) and issubclass(found, Encoder)
}

# Models that a file can name.
MODELS: dict[str, type[VAE]] = {"SparseDictionary": SparseDictionary}


def export(model: VAE, directory: str | os.PathLike, overwrite: bool = False) -> None:
    r"""Write a trained model with a linear decoder as a sparse autoencoder, in a folder of its own.

    The folder holds ``cfg.json``, ``sae_weights.safetensors`` and ``posterior.safetensors``. Data are in their own
    units: the standardisation of the encoder's input is folded into `W_enc` and `b_enc`, and the norms of the atoms
    into the codes, so that the rows of `W_dec` have norm 1. Each file is written atomically, ``cfg.json`` last.

    Three architectures are written:

    - ``"jumprelu"`` for a `vsc_pyro.JumpReLUEncoder`, and ``"standard"`` for a linear `vsc_pyro.DeltaEncoder` with
      ``rectify=True``: SAELens opens both, and its codes are the hard codes of the model, up to rounding;
    - ``"vsc_pyro"`` for every other encoder of exact zeros. Only `vsc_pyro.sae.load` opens it, and SAELens refuses it.

    A `vsc_pyro.RefinedEncoder` refines under noise, prior and `beta` of its model, so the folder then holds all weights
    of the model.

    Args:
        model: a `VAE` with an encoder of this library and a linear `vsc_pyro.NormalDecoder` (``hidden=()``); with a
            `vsc_pyro.RefinedEncoder`, a `vsc_pyro.SparseDictionary`.
        directory: a folder without a sparse autoencoder; it is created if it does not exist.
        overwrite: replace a sparse autoencoder in the folder.

    Raises:
        ValueError: a decoder that is not linear or has no normal likelihood; an encoder with a trunk, of another class,
            or whose codes have no exact zeros; a slab warm-up that has not ended; a `vsc_pyro.RefinedEncoder` in a
            model that is no `vsc_pyro.SparseDictionary`.
        FileExistsError: the folder holds a sparse autoencoder and `overwrite` is False, or it is a file.
        ImportError: the package safetensors is not installed.

    Example:
        >>> import tempfile, torch
        >>> import vsc_pyro as vsc
        >>> encoder, decoder = vsc.JumpReLUEncoder(6, 4), vsc.NormalDecoder(4, 6, hidden=())
        >>> model = vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(4, learn_slab=True))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     vsc.sae.export(model, folder)
        ...     sae = vsc.sae.load(folder)
        >>> sae.cfg.architecture, sae.encode(torch.rand(5, 6)).shape
        ('jumprelu', torch.Size([5, 4]))
    """
    check_is_vae(model)
    encoder = _checked_encoder(model)
    own, state = _described(model)
    atoms, b_dec = _linear_map(model, encoder.latent_dim)
    safetensors_torch()
    folder = expanded(directory, "directory")
    if not (nearest := next(path for path in (folder, *folder.absolute().parents) if path.exists())).is_dir():
        raise FileExistsError(f"directory must be a folder, and {nearest} is a file; take another directory")
    found = [name for name in (CFG, WEIGHTS, POSTERIOR) if (folder / name).exists()]
    if found and not yes_or_no("overwrite", overwrite):
        raise FileExistsError(f"{folder} holds {', '.join(found)}; pass overwrite=True, or take another directory")
    norms, dtype = atoms.norm(dim=1), model.reference.dtype
    weights = _folded(encoder, atoms, norms, b_dec)
    (folder / CFG).unlink(missing_ok=True)  # no reader pairs it with other weights
    write_tensors(folder / WEIGHTS, {name: weight.to(dtype) for name, weight in weights.items()})
    write_tensors(folder / POSTERIOR, {**state, "norms": norms.to(dtype)})
    write_cfg(folder / CFG, _cfg(encoder, own, dtype, len(b_dec)))


def architecture_of(encoder: Encoder) -> str:
    """Return the architecture whose codes are the hard codes of the encoder; ``"vsc_pyro"`` if there is none."""
    thresholds: Tensor | None = getattr(encoder, "jump_thresholds", None)
    if thresholds is None:
        return "vsc_pyro"
    return "jumprelu" if thresholds.any() else "standard"


def _folded(encoder: Encoder, atoms: Tensor, norms: Tensor, b_dec: Tensor) -> dict[str, Tensor]:
    """Return weights in units of the data and of atoms with norm 1."""
    # In float64, because folding the input's mean into a bias would cancel digits.
    value, derivative = _first_order(copy.deepcopy(encoder).cpu().double().eval(), b_dec)
    weights = {"W_enc": derivative * norms, "b_enc": value * norms, "W_dec": unit_rows(atoms), "b_dec": b_dec}
    if architecture_of(encoder) == "jumprelu":
        thresholds = cast("Tensor", encoder.jump_thresholds)
        weights["threshold"] = thresholds.cpu().double() * norms
    return weights


def _checked_encoder(model: VAE) -> Encoder:
    encoder = model.encoder
    if ENCODERS.get(type(encoder).__name__) is not type(encoder):
        raise ValueError(
            f"the encoder must be one of {', '.join(sorted(ENCODERS))}, which a file can name, got "
            f"{type(encoder).__name__}"
        )
    if not hasattr(encoder, "hidden"):
        raise ValueError(f"the encoder must be an MLP to be exported, got a trunk, {type(encoder.network[0]).__name__}")
    with model.evaluating():
        posterior = encoder(model.reference.new_zeros(1, *encoder.input_shape))
    if inclusion_logits(posterior) is None and not getattr(encoder, "rectify", False):
        raise ValueError(
            f"the codes of a sparse autoencoder have exact zeros, and those of this {type(encoder).__name__} have "
            "none; train a JumpReLUEncoder, a SpikeSlabEncoder, or a DeltaEncoder(rectify=True)"
        )
    if float(getattr(encoder, "slab_weight", 1.0)) != 1:
        raise ValueError(
            f"encoder.slab_weight is {float(encoder.slab_weight):g}, left by a slab warm-up that did not end; train to "
            "its end, or end it by model.encoder.slab_weight.fill_(1.0)"
        )
    return encoder


def _linear_map(model: VAE, latent_dim: int) -> tuple[Tensor, Tensor]:
    """Return atoms ``(J, D)`` and bias ``(D,)`` of a linear decoder, in units of the data, float64."""
    with model.evaluating():
        likelihood = model.decoder(model.reference.new_zeros(1, latent_dim))
    if not isinstance(likelihood, LinearNormal):
        raise ValueError(
            f"a sparse autoencoder has a linear decoder, and {type(model.decoder).__name__} is none, or not one with a "
            "normal likelihood; train a NormalDecoder(hidden=()) without covariates"
        )
    return likelihood.dictionary.flatten(1).cpu().double(), likelihood.mean[0].flatten().cpu().double()


@torch.no_grad()
def _first_order(encoder: Encoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value ``(J,)`` of the encoder's first head at the datum x ``(D,)``, and its derivative ``(D, J)``."""

    def head(x: Tensor) -> Tensor:
        return encoder.heads(x.reshape(-1, *encoder.input_shape))[0]

    # Central differences: up to rounding in float64 they are exact for a linear head.
    step = _STEP * encoder.input_scale
    steps = step * torch.eye(len(x), dtype=x.dtype)
    return head(x)[0], (head(x + steps) - head(x - steps)) / (2 * step)


def _cfg(encoder: Encoder, own: dict[str, Any], dtype: torch.dtype, d_in: int) -> dict[str, Any]:
    return {
        "architecture": architecture_of(encoder),
        "d_in": d_in,
        "d_sae": encoder.latent_dim,
        "dtype": str(dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": _SAE_LENS_VERSION, "vsc_pyro": {"format": FORMAT, **own}},
    }


def _described(model: VAE) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the class and arguments of the module that has the posterior, and its weights by their names in the model.

    The module is the encoder, or the whole model if the encoder refines under it.
    """
    encoder, name = model.encoder, type(model).__name__
    if not hasattr(encoder, "attach"):
        state = {f"encoder.{of}": tensor for of, tensor in encoder.state_dict().items()}
        return {"encoder": type(encoder).__name__, "arguments": _arguments(encoder)}, state
    if MODELS.get(name) is not type(model):
        raise ValueError(
            f"a {type(encoder).__name__} refines under its model, which must then be one of {', '.join(MODELS)}, which "
            f"a file can name, got {name}"
        )
    # A schedule or the user may have moved beta since the model was built, even to 0, which no constructor takes.
    beta = max(float(model.beta * model.warmup), torch.finfo(torch.float32).tiny)
    arguments = arguments_of(model)
    del arguments["gate"]  # it acts in training only
    sizes = {"input_shape": encoder.input_shape, "hidden": encoder.hidden}
    return {"model": name, "arguments": plain({**arguments, **sizes, "beta": beta})}, model.state_dict()


def _arguments(encoder: Encoder) -> dict[str, Any]:
    """Return the arguments that build an encoder of the same posterior in evaluation mode."""
    signature = inspect.signature(type(encoder))
    given = {name: getattr(encoder, name, None) for name in signature.parameters}
    # The rest acts in training only: the gate, the inclusion to start from, corruption.
    arguments = {name: value for name, value in given.items() if isinstance(value, (int, str, tuple))}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"a file cannot hold all arguments of {type(encoder).__name__} ({error}); train a JumpReLUEncoder or a "
            "SpikeSlabEncoder"
        ) from error
    return arguments
