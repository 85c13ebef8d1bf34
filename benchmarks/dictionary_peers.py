"""SAELens's sparse autoencoders for `dictionaries.py`, trained by SAELens's trainer in an environment that has it.

The process reads cells from its standard input, one a line, and writes the figures of each to its standard output, one
a line. Settings other than those of a cell are SAELens's defaults, with a learning rate that falls over the last
quarter of the run, as this library's does. Evaluated is the inference model that SAELens saves. Its figures by
SAELens's own functions are recorded beside those of `vsc_pyro.evaluate_dictionary`, with the largest difference.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from dictionary_worlds import TEST, Cell, Machine, Timed, World, evaluated, source, speed
from sae_lens import SAE
from sae_lens import saes as families
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.synthetic.evals import eval_sae_on_synthetic_data
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

_DECAY = 0.25


def autoencoder(cell: Cell, device: str) -> Any:
    """Return an untrained autoencoder."""
    settings, atoms = dict(cell.settings), cell.sizes.atoms
    own: dict[str, Any] = {"d_in": cell.sizes.dim, "d_sae": atoms, "device": device}
    if "k" in settings:
        own["k"] = cell.scaled("k")
    coefficient = settings.get("coefficient")
    match cell.method:
        case "TopK":
            own["k"] = max(1, round(own["k"]))
            return families.TopKTrainingSAE(families.TopKTrainingSAEConfig(**own))
        case "BatchTopK":
            return families.BatchTopKTrainingSAE(families.BatchTopKTrainingSAEConfig(**own))
        case "Matryoshka BatchTopK":
            own["matryoshka_widths"] = sorted({max(1, atoms // 16), max(1, atoms // 4), atoms})
            return families.MatryoshkaBatchTopKTrainingSAE(families.MatryoshkaBatchTopKTrainingSAEConfig(**own))
        case "JumpReLU":
            own["l0_coefficient"] = coefficient
            return families.JumpReLUTrainingSAE(families.JumpReLUTrainingSAEConfig(**own))
        case "L1":
            own["l1_coefficient"] = coefficient
            return families.StandardTrainingSAE(families.StandardTrainingSAEConfig(**own))
        case "gated":
            own["l1_coefficient"] = coefficient
            return families.GatedTrainingSAE(families.GatedTrainingSAEConfig(**own))
    raise ValueError(f"unknown method {cell.method!r}")


def run(cell: Cell, machine: Machine) -> dict[str, Any]:
    """Train and evaluate the autoencoder of a cell, and return its figures."""
    torch.manual_seed(cell.seed)
    data, sae = source(cell, machine), autoencoder(cell, machine.device)
    batches, lr, batch_size = Timed(data.batches()), dict(cell.settings)["lr"], cell.sizes.batch_size
    config = SAETrainerConfig(
        total_training_samples=cell.steps * batch_size,
        train_batch_size_samples=batch_size,
        device=machine.device,
        lr=lr,
        lr_end=lr,  # where the decay starts
        lr_decay_steps=int(_DECAY * cell.steps),
        logger=LoggingConfig(log_to_wandb=False),
    )
    start = time.process_time()
    SAETrainer(cfg=config, sae=sae, data_provider=batches).fit()
    seconds = time.process_time() - start
    with tempfile.TemporaryDirectory() as saved:
        sae.save_inference_model(saved)
        found = SAE.load_from_disk(saved)
    figures = evaluated(found, data)
    own = _by_sae_lens(found, data, figures["test"]) if isinstance(data, World) else None
    return {**figures, **speed(cell, machine.device, seconds, batches), "sae_lens": own}


class _Sample:
    """A sample as SAELens's functions draw one: first features, then the data that they make."""

    def __init__(self, data: World) -> None:
        sample = data.sample(TEST)
        self._x, self._values = sample.images, sample.factors.values
        self.feature_vectors = data.dictionary

    def sample(self, number: int) -> Tensor:
        self._drawn, self._x = self._x[:number], self._x[number:]
        values, self._values = self._values[:number], self._values[number:]
        return values

    def __call__(self, values: Tensor) -> Tensor:
        return self._drawn


def _by_sae_lens(sae: Any, data: World, ours: dict[str, Any]) -> dict[str, float]:
    """Return the figures of SAELens's own functions, and the largest difference from this library's."""
    sample = _Sample(data)
    found = eval_sae_on_synthetic_data(sae, sample, sample, ours["num_data"], batch_size=4096)
    scores = found.classification
    own = {
        "hard_l0": found.sae_l0,
        "dead": found.dead_latents,
        "hard_explained_variance": found.explained_variance,
        "hard_shrinkage": found.shrinkage,
        "mcc": found.mcc,
        "uniqueness": found.uniqueness,
        "precision": scores.precision,
        "recall": scores.recall,
        "f1": scores.f1_score,
        "accuracy": scores.accuracy,
    }
    return {**own, "largest_difference": max(abs(value - ours[name]) for name, value in own.items())}


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in ("sae-lens", "torch")}
    return {**found, "python": platform.python_version()}


def main() -> None:
    answers = sys.stdout
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        print(json.dumps(versions()), file=answers, flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            settings = tuple((key, value) for key, value in asked["cell"].pop("settings"))
            root = None if asked["root"] is None else Path(asked["root"])
            machine = Machine(Path(asked["streams"]), root, asked["device"])
            try:
                answer = run(Cell(**asked["cell"], settings=settings), machine)
            except Exception:  # the next cell may succeed
                answer = {"error": traceback.format_exc()}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
