"""`save` writes a model to a folder, and `load` reads it, or the model in a checkpoint, from the path alone.

A folder holds config.json (classes and arguments, see `vsc_pyro._recorded`), weights.pt and README.md, a model card. A
checkpoint of `vsc_pyro.fit` holds the same text and the same tensors. Files may be damaged, edited or malicious:
classes come from a registry, tensors are read without running code, and nothing is built that is far larger than the
weights.
"""

from __future__ import annotations

import copy
import json
import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyro
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vsc_pyro._files import expanded, replacing_folder
from vsc_pyro._recorded import Builder, Description
from vsc_pyro._seeding import seeded
from vsc_pyro.datasets import as_dataset
from vsc_pyro.distributions import centre
from vsc_pyro.gates import Gate
from vsc_pyro.models.layout import layout, public_attributes
from vsc_pyro.models.vae import VAE, check_is_vae
from vsc_pyro.training.checkpoints import (
    check_tensors,
    is_plain,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    shortened,
    shown,
)
from vsc_pyro.training.model_card import model_card

if TYPE_CHECKING:
    from vsc_pyro.evaluation.dictionaries import DictionaryEvaluation
    from vsc_pyro.evaluation.figures import Evaluation

FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "weights.pt", "README.md"
_CONFIG_LIMIT = 8 * 2**20  # bytes; parsing can take far more memory than the text
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Numbers that constructors may ask torch for: so many, and so many for each byte of tensors. They try decoders on 65
# codes, and a number has two to eight bytes.
_LEAST_NUMBERS, _NUMBERS_PER_BYTE = 2**24, 64
_CPU, _BUILD_SEED = torch.device("cpu"), 2**31 - 3  # a seed that no caller has, whose numbers a part may keep


def save(
    model: VAE,
    directory: str | os.PathLike,
    *,
    data: Any = None,
    evaluation: Evaluation | DictionaryEvaluation | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `model` to a folder from which `vsc_pyro.load` builds it, in another process too, with equal outputs.

    The folder holds config.json, the classes and arguments of the model and its parts; weights.pt, its tensors; and
    README.md, a model card. It is written as a whole or not at all. The model that the files describe is built and
    compared with `model` before anything is written.

    Args:
        model: a `VAE` of parts of this library, or of classes that `vsc_pyro.register` knows.
        directory: the folder, which is created; ``~`` is the home folder.
        data: a `Dataset`, or what `as_dataset` takes; the files state its name, shape and binarisation. Usually that of
            training.
        evaluation: result of `vsc_pyro.evaluate` or `vsc_pyro.evaluate_dictionary`, for the card. Without one the card
            says that the model has not been evaluated.
        overwrite: True replaces a model in `directory`.

    Returns:
        The folder.

    Raises:
        ValueError: a model that files cannot describe: an argument that is a function, a class that is not registered,
            a part that was changed after it was built. The message names it and the remedy.
        FileExistsError: `directory` holds a model and `overwrite` is False, or holds anything else, or is a file.
        OSError: the file system refuses to write.

    Example:
        >>> import tempfile, torch
        >>> import vsc_pyro as vsc
        >>> parts = vsc.SpikeSlabEncoder(64, 8), vsc.BernoulliDecoder(8, 64), vsc.SpikeSlabPrior(8)
        >>> model, x = vsc.VAE(*parts), torch.rand(5, 64)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = model.save(folder + "/digits")
        ...     again = vsc.load(path)
        >>> torch.equal(again.encoder(x).mean, model.encoder(x).mean)
        True
    """
    check_is_vae(model)
    data = None if data is None else as_dataset(data)
    if data is not None:
        model.check_parts(data.images[:1].to(model.reference))
    if evaluation is not None and not hasattr(evaluation, "as_dict"):
        raise ValueError(
            f"evaluation must be what evaluate or evaluate_dictionary returned, got a {type(evaluation).__name__}"
        )
    folder = Path(os.path.realpath(expanded(directory, "directory")))
    if folder in (Path.cwd(), *Path.cwd().parents):
        raise ValueError(f"directory must be a folder of its own, got {folder}, which holds the working directory")
    _check_free(folder, overwrite)
    config, tensors = described(model)
    if data is not None:
        config["data"] = {"name": data.name, "shape": [*data.shape[1:]], "binarize": data.binarize or "none"}
    elif evaluation is not None and "binarize" in vars(evaluation):
        config["data"]["binarize"] = vars(evaluation)["binarize"] or "none"
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    held = {"model": model.state_dict(), **tensors}
    for name, value in (entry for entries in held.values() for entry in entries.items()):
        if not is_plain(value):
            raise ValueError(
                f"{name} is {shown(value)}, and files hold dense tensors of numbers alone; keep a sparse one as its "
                "indices and values, and other state (get_extra_state) as arguments of the constructor"
            )
    state = {
        of: {name: tensor.detach().contiguous() for name, tensor in entries.items()} for of, entries in held.items()
    }
    check_described(model, text, state)
    with replacing_folder(folder) as temporary:
        save_checkpoint(temporary / WEIGHTS, state)
        (temporary / CONFIG).write_text(text, encoding="utf-8")
        (temporary / CARD).write_text(model_card(model, config, evaluation), encoding="utf-8")
    return folder


def load(path: str | os.PathLike) -> VAE:
    """Build the model that `VAE.save` wrote to a folder, or that `vsc_pyro.fit` wrote to a checkpoint.

    The model is on the CPU. Its outputs equal those of the saved model to the last bit; its precision, its gates with
    their temperatures, beta, other settings, the mode (training or evaluation) and the parameters that are not trained
    are those of the saved model. No code of the file is run, the caller's random state does not change, and a part that
    is far larger than the weights is not built.

    Args:
        path: a folder or a checkpoint; ``~`` is the home folder.

    Raises:
        FileNotFoundError: no such file or folder, or a file of the folder is missing.
        ValueError: a file that is truncated, corrupt, of another format, or would run code; a class that is not
            registered (see `vsc_pyro.register`), which the message names; arguments that do not fit the weights; a
            checkpoint that does not describe its model.

    Example:
        >>> import tempfile, torch
        >>> import vsc_pyro as vsc
        >>> model = vsc.VAE(vsc.NormalEncoder(6, 2), vsc.NormalDecoder(2, 6), vsc.NormalPrior(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     history = vsc.fit(model, torch.randn(50, 6), epochs=1, checkpoint=folder + "/run.pt", progress=False)
        ...     again = vsc.load(folder + "/run.pt")
        >>> type(again.prior).__name__
        'NormalPrior'
    """
    path = expanded(path)
    if not path.exists():
        raise FileNotFoundError(
            f"nothing at {path.absolute()}; model.save writes a folder, and fit(checkpoint=) a file to load"
        )
    if not path.is_dir():
        state = load_checkpoint(path)
        if not isinstance(state.get("config"), str):
            raise ValueError(
                f"checkpoint {path} does not describe its model: an earlier version wrote it, or the model cannot be "
                "described, for a reason that model.save raises; build the model as it was built, and call "
                f"vsc_pyro.load_weights(model, vsc_pyro.load_checkpoint({str(path)!r}))"
            )
        text = state["config"]
    else:
        for name in (CONFIG, WEIGHTS):
            if not (path / name).is_file():
                raise FileNotFoundError(f"no {name} in {path}; a model is a folder that model.save has written")
        text, state = _text(path / CONFIG), load_checkpoint(path / WEIGHTS)
    try:
        model = _restored(_parsed(text, "the config"), state, WEIGHTS if path.is_dir() else path.name)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the model in {path} was not read: {error}") from error
    if not path.is_dir():
        model.warmup.fill_(1.0)  # a warm-up is part of the run
    return model


def described(model: VAE) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Return the content of config.json, and the tensors beside the weights: arguments, and settings that are buffers.

    Raises:
        ValueError: a model that cannot be described.
    """
    from vsc_pyro import __version__  # vsc_pyro imports this module

    description, modes = Description(), {path: module.training for path, module in model.named_modules()}
    shape = model._datum_shape
    config = {
        "format": FORMAT,
        "vsc_pyro": __version__,
        "model": description.of(model, "model"),
        "gates": {path: description.of(gate, f"gates.{path}") for path, gate in _gates(model).items()},
        "training": model.training if len({*modes.values()}) == 1 else [path for path, on in modes.items() if on],
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "data": {"name": None, "shape": None if shape is None else [*shape], "binarize": None},
    }
    return config, {"arguments": description.tensors, "buffers": _settings(model)}


def check_described(model: VAE, text: str, state: dict[str, Any]) -> None:
    """Raise `ValueError` unless a config and tensors build a model like this one, with equal outputs."""
    try:
        _check_alike(model, _restored(_parsed(text, CONFIG), state, WEIGHTS))
    except ValueError as error:
        raise ValueError(
            f"files would not describe this model, which may have been changed after it was built: {error}; build it "
            "as it is, in a class of your own that vsc_pyro.register knows, delete an attribute that no constructor "
            "sets, or keep the weights by save_checkpoint"
        ) from error


def _gates(model: VAE) -> dict[str, Gate]:
    return {path: module for path, module in model.named_modules() if isinstance(module, Gate)}


def _settings(model: VAE) -> dict[str, Tensor]:
    """Return the buffers that the `state_dict` leaves out, such as beta and temperatures."""
    weights = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name not in weights}


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    found = {file.name for file in folder.iterdir()} if folder.is_dir() else {"a file"}
    if not found:
        return
    others = found - {CONFIG, WEIGHTS, CARD}
    if others or not {CONFIG, WEIGHTS} <= found:
        raise FileExistsError(
            f"directory {folder} holds {shortened(min(others or found))}, and a model has a folder of its own; take "
            "another directory"
        )
    if not overwrite:
        raise FileExistsError(f"directory {folder} holds a model; pass overwrite=True to replace it, or another name")


def _check_alike(model: VAE, built: VAE) -> None:
    """Raise `ValueError` unless the model that the files describe has the modules and settings of `model`."""
    for of in (layout, public_attributes):
        own, other = of(model), of(built)
        for name in (*own, *other):
            if own.get(name) != other.get(name):
                here, there = (shortened(str(found.get(name, "absent"))) for found in (own, other))
                raise ValueError(f"{name or 'the model'} is {here}, and its constructors make it {there}")
    if model._datum_shape is not None and not all(map(torch.equal, _outputs(model), _outputs(built))):
        raise ValueError("its posterior or its likelihood differs from that of the model that its constructors make")


def _outputs(model: VAE) -> list[Tensor]:
    """Return the centres of posterior and likelihood for a fixed datum, on the CPU."""
    model = copy.deepcopy(model).to("cpu")
    shape = cast("torch.Size", model._datum_shape)
    x = torch.ones(1, *shape).to(model.reference)
    with model.evaluating(), seeded(0, x.device), pyro.validation_enabled(False):
        posterior = model.encoder(x)
        z = centre(posterior)
        likelihood = model.decoder(z)
        return [z.nan_to_num(), likelihood.sample().nan_to_num()]


def _text(file: Path) -> str:
    if file.stat().st_size > _CONFIG_LIMIT:
        raise ValueError(f"{file} has {file.stat().st_size} bytes, more than the {_CONFIG_LIMIT} of a plausible config")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is damaged: no text ({error.reason}); save the model again") from error


def _parsed(text: str, what: str) -> dict[str, Any]:
    try:
        config = json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is damaged ({shortened(str(error))}); save the model again") from error
    if type(config) is not dict or config.get("format") != FORMAT:
        found = config.get("format") if type(config) is dict else config
        raise ValueError(f"{what} must have format {FORMAT}, got {shown(found)}; save the model with this version")
    return config


def _refused(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


class _Limit(TorchDispatchMode):
    """Refuse to make tensors once the sizes that torch was asked for exceed `most` numbers."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._left = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for sizes in (*args, *(kwargs or {}).values()):
            if isinstance(sizes, (list, tuple)) and sizes and all(type(size) is int for size in sizes):
                self._left -= abs(math.prod(sizes))
        if self._left < 0:
            raise ValueError("the arguments ask for far more numbers than the weights hold")
        return func(*args, **(kwargs or {}))


def _restored(config: dict[str, Any], state: dict[str, Any], name: str) -> VAE:
    """Build the model of a config and of the tensors in the file `name`, on the CPU.

    Raises:
        ValueError: a damaged config, or tensors that do not fit it.
    """
    weights, arguments, settings = (_tensors(state, key) for key in ("model", "arguments", "buffers"))
    held = [tensor.untyped_storage() for tensors in (weights, arguments, settings) for tensor in tensors.values()]
    num_bytes = sum({storage.data_ptr(): storage.nbytes() for storage in held}.values())
    most = _LEAST_NUMBERS + _NUMBERS_PER_BYTE * num_bytes
    with seeded(_BUILD_SEED, _CPU), torch.inference_mode(False), torch.device("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what constructors warn of has been said when the model was built
        with _Limit(most):
            model = _built(config, arguments)
            _check_data(model, config.get("data"))
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for key, tensor in own.items():
            saved = weights.get(key, settings.get(key))
            if saved is not None and saved.dtype in _TYPES and tensor.dtype in _TYPES:
                tensor.data = tensor.data.to(saved.dtype)
        check_tensors(_settings(model), settings, name)
        load_weights(model, {"model": weights}, name)
        for key, buffer in _settings(model).items():
            buffer.copy_(settings[key])
        _set_modes(model, config)
    return model


def _tensors(state: dict[str, Any], name: str) -> dict[str, Tensor]:
    tensors = state.get(name)
    if not isinstance(tensors, dict) or not all(isinstance(k, str) and is_plain(v) for k, v in tensors.items()):
        raise ValueError(f"the weights are damaged: {name} must be tensors by name, got {shown(state.get(name))}")
    for key, tensor in tensors.items():
        if tensor.nbytes > tensor.untyped_storage().nbytes():  # one number may stand for any number of entries
            raise ValueError(f"the weights are damaged: {shortened(key)} has fewer numbers than entries")
    return {key: tensor.detach().cpu() for key, tensor in tensors.items()}


def _built(config: dict[str, Any], arguments: dict[str, Tensor]) -> VAE:
    builder = Builder(arguments)
    model: Any = builder.build(config.get("model"), "model")
    check_is_vae(model)
    entries, there = config.get("gates"), _gates(model)
    if type(entries) is not dict or entries.keys() != there.keys():
        raise ValueError(f"gates must describe {shortened(', '.join(there)) or 'nothing'}, got {shown(entries)}")
    for path, entry in entries.items():
        gate = builder.build(entry, f"gates.{path}")
        if not isinstance(gate, Gate):
            raise ValueError(f"gates.{path} must be a gate, got a {type(gate).__name__}")
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, gate)
    return model


def _check_data(model: VAE, data: object) -> None:
    """Show a model the shape of its data, as `fit` and `evaluate` do."""
    shape = data.get("shape") if type(data) is dict else None
    if shape is None:
        return
    if type(shape) is not list or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"data.shape must be sizes of at least 1, got {shown(shape)}")
    try:
        model.check_parts(model.reference.new_zeros(1, *shape))
    except Exception as error:  # an absurd shape can raise anything in a part
        raise ValueError(f"data.shape {shown(shape)} does not fit the model: {shortened(str(error), 300)}") from error


def _set_modes(model: VAE, config: dict[str, Any]) -> None:
    training: Any = config.get("training")
    frozen: Any = config.get("frozen")
    if type(training) not in (bool, list) or type(frozen) is not list:
        raise ValueError(f"training must be true, false or names, and frozen names, got {shown([training, frozen])}")
    for path, module in model.named_modules():
        module.training = training if isinstance(training, bool) else path in training
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
