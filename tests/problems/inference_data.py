"""Groups and values of what `to_arviz` returns, under either line of ArviZ."""

import torch


def groups(inference):
    """The groups by name, whichever line of ArviZ."""
    names = inference.children if hasattr(inference, "children") else inference.groups()
    return {name: inference[name] for name in names}


def values(inference, group, name):
    return torch.from_numpy(inference[group][name].values)
