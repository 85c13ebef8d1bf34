"""A report on a trained model: what it believes, what its latents mean, and whether it can be trusted."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vsc_pyro._arguments import natural_int, positive_int
from vsc_pyro._files import replacing
from vsc_pyro.arviz_bridge.to_arviz import has_proper_prior, to_arviz
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import inclusion_logits
from vsc_pyro.evaluation.codes import Codes, codes
from vsc_pyro.evaluation.evaluate import evaluate
from vsc_pyro.models.data_checks import in_memory
from vsc_pyro.models.vae import VAE
from vsc_pyro.pages.document import Document
from vsc_pyro.pages.files import new_file

if TYPE_CHECKING:
    import pandas

NUM_EXPLAINED = 3
NUM_IMPUTED = 100
NUM_BOUNDED = 1000
BOUND_DRAWS = 20
_FIGURES = (
    *(f"{name}_{i}" for i in range(NUM_EXPLAINED) for name in ("code", "explanation")),
    *("latents_on", "inclusion_by_class", "inclusion_by_datum", "inclusion_usage"),
    *(
        "traversals",
        "traversal",
        "conditional_samples",
        "loadings",
        "interpolation",
        "embedding",
        "manifold",
        "pseudo_inputs",
    ),
    *("receptive_fields", "predictive_check", "prior_samples", "reliability", "ranks", "imputations", "bounds"),
)
REPORT_FILES = ("posterior.nc", *(f"{name}.png" for name in _FIGURES))  # what a folder of files may get


def report(
    model: VAE,
    data: Dataset | Tensor | np.ndarray,
    path: str | os.PathLike,
    *,
    train: Dataset | Tensor | np.ndarray | None = None,
    unseen: Mapping[str, Dataset | Tensor | np.ndarray] | None = None,
    compare: Mapping[str, VAE] | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
    settings: Mapping[str, Any] | None = None,
    files: str | os.PathLike | None = None,
    num_data: int = 16,
    num_samples: int = 500,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write a report on a trained model: figures and tables in one HTML file that needs no network.

    It asks what the model believes about single data, which latents are on and how sure it is, what each latent means,
    whether the model makes such data, whether its probabilities can be trusted, what it makes of missing values, and
    whether it notices what it has not seen. What a model does not have (spikes, a bound, a proper prior) is left out
    with a sentence that says why. The model's mode and the caller's random state are left as they were. Needs ArviZ.

    Args:
        model: a trained `VAE`, of any decoder.
        data: data that it has not been trained on, shape ``(N, ...)``; with labels, latents are shown by class as well.
        path: the HTML file.
        train: its training data, whose mean missing values are compared with; None for `data`.
        unseen: other data of the same shape, by name, that it should find unlike its own.
        compare: other models of the same data, by name.
        names: one for each of D features, for data that are vectors.
        title: what stands above; None for the data's name and the number of latents.
        settings: facts to show first, by name: numbers and texts.
        files: a folder for the figures as PNG files, and for posterior.nc, the posterior of the first `num_data` data
            and what is predicted from it, for `arviz.from_netcdf`; None to keep nothing but the page.
        num_data: how many data, from the first on, are drawn codes of.
        num_samples: draws of each of these codes.
        seed: of all that is drawn.
        overwrite: replace files that are there.

    Returns:
        The HTML file.

    Raises:
        ValueError: data that do not fit the model, or another number of names than features.
        FileExistsError: files that are there, without `overwrite`.
    """
    from vsc_pyro.pages import sections

    seed, num_data = natural_int("seed", seed), positive_int("num_data", num_data)
    file, folder = new_file(path, overwrite), None if files is None else _folder(files, overwrite)
    data, train = in_memory(data), data if train is None else train
    model.check_data(data.images)
    if names is not None and len(names) != (size := data.images[0].numel()):
        raise ValueError(f"names must hold one name for each of {size} features, got {len(names)}; pass {size}")
    subject = Subject(model, data, in_memory(train), dict(unseen or {}), dict(compare or {}), names, seed)
    subject.name = title or f"{data.name}, {subject.codes.centre.shape[1]} latents"
    document = Document(subject.name, folder)
    if settings:
        document.table(subject.frame([dict(settings)]), "Of this model:", index=False)
    with document.unless_refused("The draws of the posterior are"):
        subject.inference = to_arviz(
            model, data[:num_data], num_samples, predictive=folder is not None, prior=subject.has_prior, seed=seed
        )
        if folder is not None:
            with replacing(folder / "posterior.nc") as temporary:
                subject.inference.to_netcdf(temporary)
    with document.unless_refused("The evaluation is"):
        document.plain(str(evaluate(model, data[:NUM_BOUNDED], num_draws=BOUND_DRAWS, seed=seed)))
    for section in sections.SECTIONS:
        section(document, subject)
    return document.write(file)


@dataclasses.dataclass(eq=False)
class Subject:
    """The model in question, its data, and what of them more than one section asks for."""

    model: VAE
    data: Dataset
    train: Dataset
    unseen: dict[str, Dataset | Tensor | np.ndarray]
    compare: dict[str, VAE]
    names: Sequence[str] | None
    seed: int
    name: str = ""
    inference: Any = None

    @functools.cached_property
    def x(self) -> Tensor:
        """The first data, as the model sees them."""
        generator = torch.Generator(self.data.images.device).manual_seed(self.seed)
        return self.data.draw(slice(NUM_IMPUTED), generator)

    @functools.cached_property
    def codes(self) -> Codes:
        """Those of `x`."""
        return codes(self.model, self.x)

    @functools.cached_property
    def has_spikes(self) -> bool:
        with self.model.evaluating():
            return inclusion_logits(self.model.encoder(self.x[:1].to(self.model.reference))) is not None

    @functools.cached_property
    def has_prior(self) -> bool:
        """Whether codes can be drawn before any datum is seen."""
        return has_proper_prior(self.model, self.data)

    @property
    def latent(self) -> int:
        """The latent that says most about the first datum: surely on, and large."""
        return int((self.codes.inclusion * self.codes.centre)[0].abs().argmax())

    @property
    def is_image(self) -> bool:
        """Whether a datum has height and width."""
        return self.names is None and sum(size > 1 for size in self.x.shape[1:]) > 1

    @property
    def is_binary(self) -> bool:
        return bool(((self.x == 0) | (self.x == 1)).all())

    def frame(self, rows: list[dict[str, Any]]) -> pandas.DataFrame:
        """A table of these rows."""
        import pandas

        return pandas.DataFrame(rows)


def _folder(files: str | os.PathLike, overwrite: bool) -> Path:
    folder = Path(files).expanduser()
    there = [name for name in REPORT_FILES if (folder / name).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"files={str(files)!r} holds a report's files ({there[0]}); pass overwrite=True to replace them, or "
            "another folder"
        )
    return folder
