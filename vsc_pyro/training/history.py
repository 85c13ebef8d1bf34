"""`History`: what a run has measured; `NonFiniteLossError`: why it ended early."""

from __future__ import annotations

import csv
import dataclasses
import os

from vsc_pyro._files import replacing


class NonFiniteLossError(RuntimeError):
    """Training met a loss or a weight that is NaN or infinite."""


@dataclasses.dataclass
class History:
    """What `fit` measured, one entry for each epoch.

    Attributes:
        elbo: minus the training loss, nats per datum, mean over the epoch: the ELBO by the gate as trained (soft spikes
            if it is soft), its KL part weighted by the model's beta and its warm-up, less any penalty; of the
            importance-weighted objective, its bound of several draws. For models that have no bound (a point for a
            posterior, pseudo-inputs assigned without charge) it is what is maximised, and no ELBO.
        seconds: duration of the epoch, compilation included.
        compiled: whether the steps were compiled, see `fit`'s `compile`.
        warmup_steps: steps in which the weight of the KL divergence rose from 0.
        compile_seconds: how much of `seconds` went into capturing and compiling steps, all runs of a resumed one
            together.
        summary: whether the run has worked, as `vsc_pyro.evaluate` says it of data to be evaluated on: of at most 1,000
            of the training data ``latents``, ``informative_latents``, ``used_per_datum``, ``r2`` and ``hard_r2``, and
            of Bernoulli data ``entropy_explained`` and ``hard_entropy_explained``. None before the end of the run, of
            `fit_ensemble`, and where codes have neither mean nor median.
    """

    elbo: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    compiled: bool = False
    compile_seconds: float = 0.0
    warmup_steps: int = 0
    summary: dict[str, float] | None = None

    def __len__(self) -> int:
        return len(self.elbo)

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write columns epoch, elbo, seconds."""
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", "elbo", "seconds"])
            writer.writerows(zip(range(1, len(self) + 1), self.elbo, self.seconds, strict=True))
