"""A report on a trained model: its beliefs about data, the meaning of its latents, and its reliability."""

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
    *("traversals", "traversal", "conditional_samples", "loadings", "interpolation"),
    *("embedding", "manifold", "pseudo_inputs", "receptive_fields"),
    *("predictive_check", "prior_samples", "reliability", "ranks", "imputations", "bounds"),
)
REPORT_FILES = ("posterior.nc", *(f"{name}.png" for name in _FIGURES))  # all that may be written to a folder of files


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

    The report asks: What does the model believe about single data? Which latents are on, and how sure is it? What does
    each latent mean? Does the model make such data? Can its probabilities be trusted? How does it impute missing
    values? Does it notice data unlike its own? Parts that need what the model lacks (spikes, a bound, a proper prior)
    are replaced by a sentence with the reason. The model's mode and the caller's random state are restored. Needs ArviZ
    and matplotlib.

    Args:
        model: a trained `VAE` with any decoder.
        data: data that it has not been trained on, shape ``(N, ...)``; with labels, latents are also shown by class.
        path: the HTML file.
        train: its training data, whose mean is the baseline for missing values; None for `data`.
        unseen: other data of the same shape, by name, which the model should find unlike its own.
        compare: other models of the same data, by name.
        names: one name for each of D features, for data that are vectors.
        title: title of the report; None for the data's name and the number of latents.
        settings: numbers and texts to show first, by name.
        files: folder for the figures as PNG files, and for posterior.nc, the posterior of the first `num_data` data
            with predictions, for `arviz.from_netcdf`; None to write only the page.
        num_data: number of data, from the first on, whose codes are drawn.
        num_samples: number of draws of each code.
        seed: seed of all draws.
        overwrite: replace existing files.

    Returns:
        The HTML file.

    Raises:
        ValueError: data that do not fit the model, or another number of names than features.
        FileExistsError: a file exists, and `overwrite` is False.

    >>> import vsc_pyro as vsc
    >>> train, test = vsc.datasets.load("digits")  # doctest: +SKIP
    >>> vsc.report(model, test, "report.html", train=train)  # doctest: +SKIP
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
        subject.draw_posterior(data[:num_data], num_samples, folder)
    with document.unless_refused("The evaluation is"):
        document.plain(str(evaluate(model, data[:NUM_BOUNDED], num_draws=BOUND_DRAWS, seed=seed)))
    for section in sections.SECTIONS:
        section(document, subject)
    return document.write(file)


@dataclasses.dataclass(eq=False)
class Subject:
    """The model of a report, its data, and results that several sections use."""

    model: VAE
    data: Dataset
    train: Dataset
    unseen: dict[str, Dataset | Tensor | np.ndarray]
    compare: dict[str, VAE]
    names: Sequence[str] | None
    seed: int
    name: str = ""
    inference: Any = None

    def draw_posterior(self, data: Dataset, num_samples: int, folder: Path | None) -> None:
        """Draw codes of `data` into `inference`, and save them in `folder`, with predictions, if there is one."""
        self.inference = to_arviz(
            self.model, data, num_samples, predictive=folder is not None, prior=self.has_prior, seed=self.seed
        )
        if folder is not None:
            with replacing(folder / "posterior.nc") as temporary:
                self.inference.to_netcdf(temporary)

    @functools.cached_property
    def x(self) -> Tensor:
        """The first data, as the model sees them."""
        generator = torch.Generator(self.data.images.device).manual_seed(self.seed)
        return self.data.draw(slice(NUM_IMPUTED), generator)

    @functools.cached_property
    def codes(self) -> Codes:
        """The codes of `x`."""
        return codes(self.model, self.x)

    @functools.cached_property
    def has_spikes(self) -> bool:
        with self.model.evaluating():
            return inclusion_logits(self.model.encoder(self.x[:1].to(self.model.reference))) is not None

    @functools.cached_property
    def has_prior(self) -> bool:
        """True if codes can be drawn before any datum is seen."""
        return has_proper_prior(self.model, self.data)

    @property
    def latent(self) -> int:
        """The latent with the largest product of inclusion and distance from zero in the first datum."""
        return int((self.codes.inclusion * self.codes.centre)[0].abs().argmax())

    @property
    def is_image(self) -> bool:
        """True if a datum has height and width."""
        return self.names is None and sum(size > 1 for size in self.x.shape[1:]) > 1

    @property
    def is_binary(self) -> bool:
        return bool(((self.x == 0) | (self.x == 1)).all())

    def frame(self, rows: list[dict[str, Any]]) -> pandas.DataFrame:
        """Return a table of these rows."""
        import pandas

        return pandas.DataFrame(rows)


def _folder(files: str | os.PathLike, overwrite: bool) -> Path:
    folder = Path(files).expanduser()
    there = [name for name in REPORT_FILES if (folder / name).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"files={str(files)!r} contains files of a report ({there[0]}); pass overwrite=True to replace them, or "
            "another folder"
        )
    return folder
