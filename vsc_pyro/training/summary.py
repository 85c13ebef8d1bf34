"""The summary of a trained model on at most 1,000 of its training data."""

from __future__ import annotations

import warnings

from tqdm.auto import tqdm

from vsc_pyro.evaluation.advice import NothingExplainedWarning, advise, nothing_explained
from vsc_pyro.evaluation.survey import survey
from vsc_pyro.models.precision import networks_in
from vsc_pyro.models.vae import VAE
from vsc_pyro.training.batches import Batches
from vsc_pyro.training.parallel import rank

# A run below both numbers is a trial, too short to blame the model for what it has not learnt.
_ENOUGH_STEPS, _ENOUGH_EPOCHS = 1000, 20


def summarize(model: VAE, batches: Batches, seed: int, num_steps: int, bar: tqdm) -> dict[str, float] | None:
    """Return the `History.summary` of a model trained for `num_steps` steps, and write it to the progress bar.

    Warn the caller's caller if the codes explain nothing after a run that was long enough. No random number of the run
    is used.

    Returns:
        The summary; None in all processes but the first, and if codes have neither mean nor median.
    """
    if rank() > 0:
        return None
    data, has_enough_epochs = batches.some(), num_steps >= _ENOUGH_EPOCHS * batches.num_steps
    is_long = num_steps >= _ENOUGH_STEPS or (batches.has_passes and has_enough_epochs)
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
