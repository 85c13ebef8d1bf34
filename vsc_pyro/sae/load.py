"""Read a sparse autoencoder; a file may be damaged, edited or malicious, and is checked before any of it is used."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vsc_pyro._files import expanded
from vsc_pyro.models.encoders.base import Encoder
from vsc_pyro.sae.autoencoder import ACTIVATIONS, Config, PosteriorAutoencoder, SparseAutoencoder
from vsc_pyro.sae.export import ENCODERS, FORMAT, MODELS, architecture_of
from vsc_pyro.sae.files import CFG, POSTERIOR, WEIGHTS, read_cfg, read_tensors
from vsc_pyro.training.checkpoints import load_weights, shortened, shown

_TYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}
# Settings under which codes are other functions of the data, with their values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "normalize_activations": ("none", False, None),
    "reshape_activations": ("none", None),
    "activation_fn": ("relu", None),
    "activation_fn_str": ("relu", None),
    "finetuning_scaling_factor": (False, None),
}


def load(directory: str | os.PathLike) -> SparseAutoencoder:
    """Read a sparse autoencoder that `vsc_pyro.sae.export` or SAELens wrote.

    Files of SAELens may have the architectures ``"standard"``, ``"jumprelu"`` or ``"topk"``. BatchTopK and Matryoshka
    models are saved as ``"jumprelu"`` by `save_inference_model`. `evaluate_dictionary` takes what is returned.

    Returns:
        A `PosteriorAutoencoder`, with the posterior of the exported model, if `vsc_pyro.sae.export` wrote the folder;
        else a `SparseAutoencoder`. Both are modules on the CPU in evaluation mode, without gradients of their weights.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: a file that is truncated, corrupt or inconsistent, an unknown architecture, or settings that this
            library does not read.
        ImportError: the package safetensors is not installed.
    """
    folder = expanded(directory, "directory")
    settings = read_cfg(folder / CFG)
    try:
        cfg = _checked_cfg(settings)
        weights = _checked_weights(cfg, _checked_type(settings), read_tensors(folder / WEIGHTS))
        own = settings.get("metadata", {}).get("vsc_pyro")
        if own is None:
            return _folded(cfg, settings, weights)
        saved = read_tensors(folder / POSTERIOR)
        norms = _checked("norms", saved.pop("norms", None), (cfg.d_sae,), weights["W_dec"].dtype)
        encoder, model = _checked_posterior(cfg, own, saved, folder / POSTERIOR, norms.dtype)
    except ValueError as error:
        raise ValueError(f"the sparse autoencoder in {folder} was not read: {error}") from error
    return PosteriorAutoencoder(cfg, weights, encoder, norms, model)


def _checked_cfg(settings: dict[str, Any]) -> Config:
    metadata = settings.setdefault("metadata", {})
    if type(metadata) is not dict:
        raise ValueError(f"{CFG} is damaged: metadata must be an object, got {shown(metadata)}")
    architecture = settings.get("architecture", "standard")
    known = [*ACTIVATIONS, "vsc_pyro"] if "vsc_pyro" in metadata else [*ACTIVATIONS]
    if architecture not in known:
        raise ValueError(
            f"its architecture is {shown(architecture)}, and {', '.join(known)} can be read; save BatchTopK and "
            "Matryoshka models by save_inference_model, which writes jumprelu"
        )
    for name, neutral in _NEUTRAL.items():
        if settings.get(name) not in neutral:
            raise ValueError(
                f"its {name} is {shown(settings[name])}, which is not read; fold it into the weights with the program "
                "that wrote it, and save again"
            )
    d_in, d_sae = (settings.get(name, 0) for name in ("d_in", "d_sae"))
    applies = settings.get("apply_b_dec_to_input", True)
    if not (type(d_in) is type(d_sae) is int and d_in > 0 and d_sae > 0 and type(applies) is bool):
        raise ValueError(
            f"{CFG} is damaged: d_in and d_sae must be whole numbers above 0, and apply_b_dec_to_input true or false, "
            f"got {shown(d_in)}, {shown(d_sae)} and {shown(applies)}"
        )
    k = settings.get("k", 0) if architecture == "topk" else 0
    if architecture == "topk" and not (type(k) is int and 0 < k <= d_sae):
        raise ValueError(f"{CFG} is damaged: k must lie between 1 and d_sae = {shown(d_sae)}, got {shown(k)}")
    return Config(architecture, d_in, d_sae, applies, k)


def _checked_type(settings: dict[str, Any]) -> torch.dtype | None:
    """Return the type that a file states for its weights, or None."""
    name = settings.get("dtype")
    if name is None:
        return None
    known = _TYPES | {f"torch.{name}": dtype for name, dtype in _TYPES.items()}
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"its dtype is {shown(name)}, and {', '.join(_TYPES)} can be read; write that of the weights")
    return known[name]


def _checked_weights(cfg: Config, dtype: torch.dtype | None, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    shapes = {
        "W_enc": (cfg.d_in, cfg.d_sae),
        "b_enc": (cfg.d_sae,),
        "W_dec": (cfg.d_sae, cfg.d_in),
        "b_dec": (cfg.d_in,),
    }
    if cfg.architecture == "jumprelu":
        shapes["threshold"] = (cfg.d_sae,)
    if unknown := weights.keys() - shapes.keys():
        raise ValueError(f"{WEIGHTS} holds {shortened(', '.join(sorted(unknown)))}, which is not read")
    dtype = dtype or _checked("W_dec", weights.get("W_dec"), shapes["W_dec"]).dtype
    return {name: _checked(name, weights.get(name), shape, dtype) for name, shape in shapes.items()}


def _checked(name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """Return the tensor `name` of a file in the type `dtype` if it has this shape and finite entries."""
    if tensor is None or tuple(tensor.shape) != shape or tensor.dtype not in _TYPES.values():
        found = "nothing" if tensor is None else shown(tensor)
        raise ValueError(f"{name} must be floating-point numbers of shape {shortened(str(shape))}, got {found}")
    tensor = tensor.to(dtype)
    if not tensor.isfinite().all():
        raise ValueError(f"{name} has entries that are NaN or infinite in {tensor.dtype}")
    return tensor


def _folded(cfg: Config, settings: dict[str, Any], weights: dict[str, Tensor]) -> SparseAutoencoder:
    """Return the autoencoder, with atoms of norm 1 if its codes are compared in such units."""
    if cfg.architecture == "topk" and settings.get("rescale_acts_by_decoder_norm", False) is True:
        norms = weights["W_dec"].norm(dim=1)
        if not norms.all():
            raise ValueError("an atom in W_dec is zero, and rescale_acts_by_decoder_norm divides by its norm")
        encoder = {name: weights[name] * norms for name in ("W_enc", "b_enc")}
        weights = {**weights, **encoder, "W_dec": weights["W_dec"] / norms[:, None]}
    return SparseAutoencoder(cfg, weights).eval()


def _checked_posterior(
    cfg: Config, own: Any, saved: dict[str, Tensor], path: Path, dtype: torch.dtype
) -> tuple[Encoder, nn.Module | None]:
    """Return the encoder that a file describes, and its model if the file has one.

    Sizes are compared with those of the weights before anything is built.
    """
    if type(own) is not dict or own.get("format") != FORMAT:
        raise ValueError(f"metadata.vsc_pyro must have format {FORMAT}, got {shown(own)}; export with this version")
    kind: str = "model" if "model" in own else "encoder"
    known: dict[str, type[nn.Module]] = {**(MODELS if kind == "model" else ENCODERS)}
    name, arguments = own.get(kind), own.get("arguments")
    if not (isinstance(name, str) and name in known and type(arguments) is dict):
        raise ValueError(f"metadata.vsc_pyro names the {kind} {shown(name)}; known are {', '.join(sorted(known))}")
    if not _fits(cfg, arguments, saved):
        raise ValueError(f"the sizes of the {kind} do not fit the weights: {shown(arguments)}")
    try:
        built: Any = known[name](**arguments)
    except TypeError as error:
        raise ValueError(f"{name} does not take the arguments {shown(arguments)}") from error
    whole = (built if kind == "model" else nn.ModuleDict({"encoder": built})).to(dtype)
    load_weights(whole, {"model": saved}, path)
    encoder = built.encoder if kind == "model" else built
    stated, expected = (cfg.architecture, cfg.apply_b_dec_to_input), (architecture_of(encoder), True)
    if stated != expected:
        raise ValueError(
            f"architecture and apply_b_dec_to_input are {stated}, and a {type(encoder).__name__} with these weights is "
            f"{expected}; restore that in {CFG}"
        )
    return encoder, built if kind == "model" else None


def _fits(cfg: Config, arguments: dict[str, Any], saved: dict[str, Tensor]) -> bool:
    """Return True if the sizes among the arguments are those of the weights."""
    shape, hidden = arguments.get("input_shape"), arguments.get("hidden", [])
    if not (isinstance(shape, list) and isinstance(hidden, list)):
        return False
    steps = arguments.get("refine_steps", 0)
    if not all(type(size) is int and size > 0 for size in (*shape, *hidden)) or type(steps) is not int:
        return False
    damping = saved.get("encoder.damping", torch.zeros(0))
    inputs = [
        tensor.shape[1] for name, tensor in saved.items() if name.startswith("encoder.network") and tensor.ndim == 2
    ]
    is_layered = sorted(inputs) == sorted([cfg.d_in, *hidden])
    num_latents = arguments.get("latent_dim", arguments.get("num_features"))
    is_sized = math.prod(shape) == cfg.d_in and num_latents == cfg.d_sae and tuple(damping.shape) == (steps,)
    return is_layered and is_sized
