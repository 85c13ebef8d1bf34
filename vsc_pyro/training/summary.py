"""The end of a run: whether it has worked, on at most 1,000 of its training data."""

from __future__ import annotations

import warnings

from tqdm.auto import tqdm

from vsc_pyro.evaluation.advice import NothingExplainedWarning, advise, nothing_explained
from vsc_pyro.evaluation.survey import survey
from vsc_pyro.models.precision import networks_in
from vsc_pyro.models.vae import VAE
from vsc_pyro.training.batches import Batches
from vsc_pyro.training.parallel import rank

# A run that is shorter than either is a trial, and no reason to blame a model for what it has not learnt.
_ENOUGH_STEPS, _ENOUGH_EPOCHS = 1000, 20


def summarize(model: VAE, batches: Batches, seed: int, epochs: int, bar: tqdm) -> dict[str, float] | None:
    """The `History.summary` of a trained model, in the first process; shown beside a bar that is.

    Warns the caller's caller where a run of so many epochs, unless it was a short one, explains nothing. No random
    number of the run is used.

    Returns:
        None in other processes, and where codes have neither mean nor median.
    """
    if rank() > 0:
        return None
    data, num_steps = batches.some(), epochs * batches.num_steps
    is_long = num_steps >= _ENOUGH_STEPS or epochs >= _ENOUGH_EPOCHS
    with networks_in(model, "float32"):
        try:
            seen = survey(model, data, seed=seed)
        except NotImplementedError:
            return None
        line = nothing_explained(model, data, seen, seed=seed) if is_long else None
    if not bar.disable:
        for text in (str(seen), *(advise(model, data, seen, seed=seed) if is_long and not line else ())):
            bar.write(text, file=bar.fp)
    if line:
        warnings.warn(f"after {num_steps} steps {line}", NothingExplainedWarning, stacklevel=3)
    return seen.as_dict()
