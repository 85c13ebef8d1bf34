"""`History`, the measurements of a run, and `NonFiniteLossError`, which ends one."""

from __future__ import annotations

import csv
import dataclasses
import os
import weakref

from vsc_pyro._files import replacing


class NonFiniteLossError(RuntimeError):
    """Training met a loss or a weight that is NaN or infinite."""


@dataclasses.dataclass(repr=False)
class History:
    """The measurements of a run of `vsc_pyro.fit`.

    Attributes:
        elbo: the objective, minus the training loss, for each epoch: mean over its steps, in nats per datum. It is the
            ELBO with the gate of training (soft spikes if the gate is soft), a KL part weighted by the model's beta and
            warm-up, and any penalty subtracted. For the importance-weighted objective it is the bound of several draws.
            It is no bound if the model has none (a point as posterior, or pseudo-inputs assigned without a charge).
        seconds: duration of each epoch, compilation included.
        compiled: True if the steps were compiled, see `compile` of `vsc_pyro.fit`.
        precision: arithmetic of the networks, ``"float32"`` or ``"bfloat16"``, see `precision` of `vsc_pyro.fit`.
        compile_seconds: part of `seconds` spent on capturing and compiling steps, before a resumption too.
        warmup_steps: number of steps in which the weight of the KL divergence rose from 0.
        steps_per_epoch: number of steps in an epoch; the last one of a run of ``fit(steps=)`` may have fewer. For a
            stream an epoch is one of at most 100 equal parts of the run.
        steps: number of steps taken.
        validation: the bound on the validation data after each epoch, in nats per datum: the ELBO with hard spikes and
            the KL divergence at its full weight, whatever beta and warm-up are. Empty without `validation`.
        used_latents: number of latents whose inclusion exceeds 1/2 for some validation datum, after each epoch. Empty
            without `validation`.
        expected_l0: mean over validation data of the summed inclusion probabilities, after each epoch. Empty without
            `validation`.
        summary: measures of the trained model on at most 1,000 of its training data: ``latents``,
            ``informative_latents``, ``used_per_datum``, ``r2`` and ``hard_r2``, and for Bernoulli data
            ``entropy_explained`` and ``hard_entropy_explained``. `vsc_pyro.evaluate` defines them. Latents are counted
            by the information that they carry; the dead ones of `vsc_pyro.evaluate_dictionary` are those whose
            inclusion never exceeds 1/2. None before the end of the run, after `fit_ensemble`, and if codes have
            neither mean nor median.

    Example:
        >>> import vsc_pyro as vsc
        >>> len(vsc.History(elbo=[-120.0, -101.5], seconds=[0.4, 0.3]))
        2
    """

    elbo: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    compiled: bool = False
    precision: str = "float32"
    compile_seconds: float = 0.0
    warmup_steps: int = 0
    steps_per_epoch: int = 0
    steps: int = 0
    summary: dict[str, float] | None = None
    validation: list[float] = dataclasses.field(default_factory=list)
    used_latents: list[int] = dataclasses.field(default_factory=list)
    expected_l0: list[float] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.elbo)

    def __repr__(self) -> str:
        if not self.elbo:
            return "History(no epoch)"
        best = self.best_epoch
        validation = "" if best is None else f", best validation {self.validation[best - 1]:.2f} in epoch {best}"
        return f"History({len(self)} epochs in {sum(self.seconds):.0f} s, objective {self.elbo[-1]:.2f}{validation})"

    @property
    def best_epoch(self) -> int | None:
        """The epoch, from 1, of the highest validation bound, the first one of several; None without validation."""
        return self.validation.index(max(self.validation)) + 1 if self.validation else None

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write the epochs to a CSV file.

        Its columns are epoch, elbo, seconds, validation, used_latents and expected_l0. The last three are empty for a
        run without validation.
        """
        columns = ("elbo", "seconds", "validation", "used_latents", "expected_l0")
        values = (getattr(self, name) or [""] * len(self) for name in columns)
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", *columns])
            writer.writerows(zip(range(1, len(self) + 1), *values, strict=True))


last_runs: weakref.WeakKeyDictionary[object, History] = weakref.WeakKeyDictionary()
"""The last run of `fit` of each model, in this process."""
