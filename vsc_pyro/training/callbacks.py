"""Callbacks of `fit`: a caller's functions of (history, model), called after each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from vsc_pyro._arguments import takes
from vsc_pyro._seeding import own_random_numbers, seeded
from vsc_pyro.models.precision import networks_in
from vsc_pyro.models.vae import VAE
from vsc_pyro.training.history import History
from vsc_pyro.training.parallel import from_the_first, own_seed

Callback = Callable[[History, VAE], bool | None]


def checked_callbacks(callbacks: Iterable[Callback]) -> list[Callback]:
    """Return `callbacks` as a list.

    Raises:
        ValueError: no list, or an entry that is no function of two arguments.
    """
    if not isinstance(callbacks, Iterable):
        remedy = f"[{callbacks!r}]" if callable(callbacks) else "[] for none"
        raise ValueError(f"callbacks must be a list of functions of (history, model), got {callbacks!r}; pass {remedy}")
    callbacks = list(callbacks)
    for callback in callbacks:
        if not takes(callback, 2):
            raise ValueError(f"callbacks must hold functions of (history, model), got {callback!r}")
    return callbacks


def ask_to_stop(callbacks: Sequence[Callback], history: History, model: VAE, seed: int) -> bool:
    """Call all callbacks in the first process, and return in all processes True if one of them returned True.

    The model is in evaluation mode and without gradients, its networks in float32. Random numbers depend on `seed` and
    on the epoch, and the run's own stay untouched.

    Raises:
        ValueError: a callback that returns neither a truth value nor None.
    """

    def ask() -> bool:
        epoch_seed = own_seed(seed, len(history))
        with (
            own_random_numbers(),
            seeded(epoch_seed, model.reference.device),
            networks_in(model, "float32"),
            model.evaluating(),
        ):
            answers = [_answer(callback, callback(history, model)) for callback in callbacks]
        return any(answers)

    return from_the_first(ask) if callbacks else False


def _answer(callback: Callback, answer: Any) -> bool:
    if answer is not None and not isinstance(answer, (bool, np.bool_)):
        raise ValueError(
            f"a callback must return True to stop the run, or False or None, got {answer!r} from {callback!r}; let it "
            "return bool(...), or nothing"
        )
    return bool(answer)
