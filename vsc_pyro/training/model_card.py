"""The model card: what a saved model is, which data it is for, and what `vsc_pyro.evaluate` found, in Markdown."""

from __future__ import annotations

from typing import Any

from torch import nn

from vsc_pyro.models.encoders import gate_of
from vsc_pyro.models.vae import VAE

_CARD = """\
# {name}

A model of vsc_pyro {version}. Load it, from this folder alone, by

```python
import vsc_pyro as vsc

model = vsc.load("path/of/this/folder")
```

`config.json` names its classes and their arguments, and `weights.pt` holds its tensors. No code is run on loading.

## Model

| part | class |
|---|---|
{parts}

{num} parameters, {dtype}.

## Data

{data}

## Evaluation

{evaluation}
"""
_PROTOCOL = "Bounds are in nats per datum, with hard spikes, exact zeros included. The first line names the data."


def model_card(model: VAE, config: dict[str, Any], evaluation: object) -> str:
    """Return the card of a model.

    Args:
        model: the model.
        config: content of its config.json.
        evaluation: result of `vsc_pyro.evaluate` or `vsc_pyro.evaluate_dictionary`, or None.
    """
    named = {"model": model, "encoder": model.encoder, "decoder": model.decoder, "prior": model.prior}
    parts = {**named, "gate": gate_of(model.encoder)}
    return _CARD.format(
        name=type(model).__name__,
        version=config["vsc_pyro"],
        parts="\n".join(f"| {name} | {_named(part)} |" for name, part in parts.items() if part is not None),
        num=f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        dtype=str(model.reference.dtype).removeprefix("torch."),
        data=_of_data(config["data"]),
        evaluation="Not evaluated." if evaluation is None else f"{_PROTOCOL}\n\n```text\n{evaluation}\n```",
    )


def _named(part: nn.Module) -> str:
    settings = part.extra_repr()
    return f"`{type(part).__name__}`" + (f", {settings}" if settings else "")


def _of_data(data: dict[str, Any]) -> str:
    shape = "unknown" if data["shape"] is None else f"`{tuple(data['shape'])}`"
    name = "" if data["name"] is None else f"Data set: {data['name']}. "
    return f"{name}Shape of a datum: {shape}. Binarisation: {data['binarize'] or 'not stated'}."
