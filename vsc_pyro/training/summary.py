"""The end of a run: whether it has worked, on at most 1,000 of its training data."""

from __future__ import annotations

import warnings

from tqdm.auto import tqdm

from vsc_pyro.advice import NothingExplainedWarning, nothing_explained
from vsc_pyro.batches import Batches
from vsc_pyro.parallel import rank
from vsc_pyro.precision import networks_in
from vsc_pyro.survey import survey
from vsc_pyro.vae import VAE

# Fewer are no reason to blame a model for what it has not learnt.
_STEPS_TO_JUDGE = 200


def summarize(model: VAE, batches: Batches, seed: int, num_steps: int, bar: tqdm) -> dict[str, float] | None:
    """The `History.summary` of a trained model, in the first process; shown beside a bar that is.

    Warns the caller's caller where a run of so many steps explains nothing. No random number of the run is used.

    Returns:
        None in other processes, and where codes have neither mean nor median.
    """
    if rank() > 0:
        return None
    data = batches.some()
    with networks_in(model, "float32"):
        try:
            seen = survey(model, data, seed=seed)
        except NotImplementedError:
            return None
        line = nothing_explained(model, data, seen, seed=seed) if num_steps >= _STEPS_TO_JUDGE else None
    if not bar.disable:
        bar.write(str(seen), file=bar.fp)
    if line:
        warnings.warn(f"after {num_steps} steps {line}", NothingExplainedWarning, stacklevel=3)
    return seen.as_dict()
