"""Checks that the models of an ensemble are built alike."""

from __future__ import annotations

from collections.abc import Sequence

from vsc_pyro.models.layout import layout, public_attributes
from vsc_pyro.models.vae import VAE


def check_built_alike(models: Sequence[VAE]) -> None:
    """Raise `ValueError`, naming the first difference, unless all models have the same modules and shapes.

    Models that share a tensor are refused as well.
    """
    expected = layout(models[0])
    owners: dict[int, str] = {}
    for index, model in enumerate(models):
        build = layout(model)
        for name in dict.fromkeys((*expected, *build)):
            if (here := build.get(name, "not there")) != (there := expected.get(name, "not there")):
                raise ValueError(
                    f"models must be built alike, and {name or 'the model'} of models[{index}] is {here}, of models[0] "
                    f"{there}; train them one after the other by fit"
                )
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, tensor in own.items():
            if (owner := owners.get(id(tensor))) is not None:
                raise ValueError(
                    f"models must not share tensors, and {name} of models[{index}] is that of {owner}; build each "
                    "model of parts of its own, or take copy.deepcopy of one"
                )
        owners |= {id(tensor): f"models[{index}]" for tensor in own.values()}


def attributes_that_differ(model: VAE, first: VAE) -> list[str]:
    """Return as text the public attributes of the model's modules that differ from those of the first model."""
    expected = public_attributes(first)
    return [
        f"{name}={value} (models[0]: {expected.get(name)})"
        for name, value in public_attributes(model).items()
        if value != expected.get(name)
    ]
