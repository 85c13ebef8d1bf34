"""A page about the features of a dictionary: when each is there, how sure the model is, and what it looks like."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vsc_pyro._arguments import natural_int, positive_int
from vsc_pyro.datasets import Dataset
from vsc_pyro.evaluation.dictionaries import DictionaryEvaluation, evaluate_dictionary
from vsc_pyro.evaluation.dictionary_codes import Coder
from vsc_pyro.evaluation.matching import unit_rows
from vsc_pyro.evaluation.reliability import Reliability
from vsc_pyro.models.data_checks import in_memory
from vsc_pyro.pages.document import Document
from vsc_pyro.pages.files import new_file

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vsc_pyro.plots.drawing import Drawing

_NUM_FEATURES, _NUM_NEAR = 50, 5
_BINS = 10


class _Latents(NamedTuple):
    """Numbers of L chosen latents ``(L,)``, their inclusion, code, and presence of their own features ``(N, L)``."""

    chosen: Tensor
    inclusion: Tensor
    code: Tensor
    present: Tensor | None


def feature_pages(
    model: Any,
    data: Dataset | Tensor | np.ndarray,
    path: str | os.PathLike,
    *,
    features: Sequence[int] | None = None,
    dictionary: Tensor | None = None,
    words: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    image_shape: Sequence[int] | None = None,
    num_top: int = 10,
    title: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write a page about the features of a dictionary: one HTML file that needs no network, with a section for each.

    A section has the feature's firing density, its atom, a histogram of its inclusion probabilities, the data in which
    it is most probable, and the atoms nearest to its own. With true features it also shows the share of data in which
    the feature nearest to the atom is present, against the probability (reliability). The page begins with the figures
    of `vsc_pyro.evaluate_dictionary` and a table of the features. Needs matplotlib and pandas.

    Args:
        model, dictionary: as in `vsc_pyro.evaluate_dictionary`.
        data: data to look for the features in, shape ``(N, ...)``; labels are shown.
        path: the HTML file.
        features: numbers of the latents to show; None for the 50 with the largest mean inclusion probability.
        words: a text for each of the N data.
        names: one name for each of D dimensions, for data that are vectors.
        image_shape: shape of a flat datum as a picture.
        num_top: number of data shown for each feature.
        title: title of the page; None for the data's name and the number of features.
        seed: of dynamic binarisation.
        overwrite: replace an existing file.

    Returns:
        The HTML file.

    Raises:
        ValueError: a model without a dictionary, a feature that does not exist, or another number of words than data.
        FileExistsError: the file exists, and `overwrite` is False.

    >>> import vsc_pyro as vsc
    >>> world = vsc.datasets.features(64, 16)  # doctest: +SKIP
    >>> vsc.feature_pages(model, world.sample(5000), "features.html", dictionary=world.dictionary)  # doctest: +SKIP
    """
    from vsc_pyro.plots.drawing import drawing_of

    file, data = new_file(path, overwrite), in_memory(data)
    num_top, seed = positive_int("num_top", num_top), natural_int("seed", seed)
    words = None if words is None else list(words)  # a Series would be indexed by its labels
    if words is not None and len(words) != len(data):
        raise ValueError(f"words must hold one text for each of {len(data)} data, got {len(words)}")
    coder = Coder(model, data, None, seed)
    num = len(coder.atoms)
    listed: Any = getattr(features, "tolist", lambda: features)()
    if listed is not None and not (
        isinstance(listed, Sequence)
        and listed
        and all(0 <= natural_int("each of features", number) < num for number in listed)
    ):
        raise ValueError(f"features must be numbers of latents from 0 to {num - 1}, got {listed!r}; pass a list")
    drawing = drawing_of(data.images, names, image_shape)
    found = evaluate_dictionary(model, data, dictionary=dictionary, seed=seed)
    chosen = found.usage.argsort(descending=True)[:_NUM_FEATURES] if listed is None else torch.tensor(listed)
    latents = _read(coder, data, found, chosen)
    document = Document(title or f"{data.name}, {num} features")
    document.plain(str(found))
    order = "largest mean probability first" if listed is None else "as asked for"
    numbered = "" if found.nearest is None else "; true features have numbers of their own"
    caption = f"{len(chosen)} of {num} features, {order}{numbered}:"
    document.table(_overview(found, latents), caption, index=False)
    directions = unit_rows(coder.atoms)
    for place, latent in enumerate(chosen.tolist()):
        document.heading(f"Feature {latent}")
        atom = coder.atoms[latent]
        document.figure(f"feature_{latent}", _portrait(drawing, atom, latents, place), f"Feature {latent}.")
        top = _top(latents, place, num_top)
        if drawing.kind == "picture":
            document.figure(f"top_{latent}", _strip(drawing, data.images[top]), "Data in which it is most probable.")
        document.table(_data(latents, place, top, data, words), "Data in which it is most probable:", index=False)
        document.table(_near(directions @ directions[latent], latent), "Nearest atoms:", index=False)
    return document.write(file)


def _read(coder: Coder, data: Dataset, found: DictionaryEvaluation, chosen: Tensor) -> _Latents:
    parts = [(codes.inclusion[:, chosen], codes.code[:, chosen]) for _, codes in coder.batches()]
    inclusion, code = (torch.cat(part) for part in zip(*parts, strict=True))
    present = None
    if found.nearest is not None and data.factors is not None:
        present = data.factors.presence.cpu()[:, found.nearest[chosen]]
    return _Latents(chosen, inclusion, code, present)


def _overview(found: DictionaryEvaluation, latents: _Latents) -> pandas.DataFrame:
    import pandas

    chosen = latents.chosen
    columns = {"feature": chosen, "density": found.density[chosen], "mean probability": found.usage[chosen]}
    if found.nearest is not None and found.cosine is not None:
        columns |= {"true feature": found.nearest[chosen], "absolute cosine": found.cosine[chosen]}
    if found.latent_f1 is not None:
        columns["F1"] = found.latent_f1[chosen]
    return pandas.DataFrame({name: column.tolist() for name, column in columns.items()})


def _top(latents: _Latents, place: int, number: int) -> Tensor:
    """Return the data with the largest inclusion of a latent, and among equals those with the largest code."""
    order = np.lexsort((latents.code[:, place].abs().numpy(), latents.inclusion[:, place].numpy()))
    return torch.from_numpy(order[::-1][:number].copy())


def _data(latents: _Latents, place: int, top: Tensor, data: Dataset, words: Sequence[str] | None) -> pandas.DataFrame:
    import pandas

    columns: dict[str, list] = {"datum": top.tolist()}
    if words is not None:
        columns["word"] = [words[row] for row in top.tolist()]
    if data.labels is not None:
        columns["label"] = [data.class_name(label) for label in data.labels[top].tolist()]
    columns |= {"probability": latents.inclusion[top, place].tolist(), "mean code": latents.code[top, place].tolist()}
    if latents.present is not None:
        columns["true feature is present"] = latents.present[top, place].tolist()
    return pandas.DataFrame(columns)


def _near(cosines: Tensor, latent: int) -> pandas.DataFrame:
    import pandas

    order = cosines.abs().argsort(descending=True)
    near = order[order != latent][:_NUM_NEAR]
    return pandas.DataFrame({"feature": near.tolist(), "cosine": cosines[near].tolist()})


def _portrait(drawing: Drawing, atom: Tensor, latents: _Latents, place: int) -> Figure:
    """Draw the atom, the histogram of inclusion probabilities, and with a truth the reliability."""
    from matplotlib.figure import Figure

    is_known = latents.present is not None
    figure = Figure(figsize=(8 if is_known else 6, max(2.2, drawing.height)), layout="constrained")
    shown, histogram, *rest = figure.subplots(1, 3 if is_known else 2)
    largest = max(float(atom.abs().max()), 1e-9)
    drawing.between(-largest, largest, "gray").draw(shown, atom)
    inclusion = latents.inclusion[:, place]
    histogram.hist(inclusion.numpy(), np.linspace(0, 1, 21), histtype="stepfilled")
    histogram.set(xlabel="inclusion probability", ylabel="data", yscale="log", xlim=(0, 1), title="When is it there?")
    shown.set_title("Atom")
    if latents.present is not None:
        _reliability(rest[0], inclusion, latents.present[:, place])
    return figure


def _reliability(axes: Axes, inclusion: Tensor, present: Tensor) -> None:
    reliability = Reliability(_BINS)
    reliability.add(inclusion, present)
    bins = reliability.bins()
    frequency = bins["bin_frequency"]
    error = 2 * (frequency * (1 - frequency) / bins["bin_count"]).sqrt()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.errorbar(bins["bin_inclusion"], frequency, error, marker="o", markersize=3)
    axes.set(xlabel="inclusion probability", ylabel="share present", title=f"Error {reliability.ece:.2g}")


def _strip(drawing: Drawing, images: Tensor) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.8 * len(images), 0.8), layout="constrained")
    for axes, image in zip(figure.subplots(1, len(images), squeeze=False)[0], images, strict=True):
        drawing.draw(axes, image)
    return figure
