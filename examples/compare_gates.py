"""Train one model with every gate, on the same data with the same budget of steps, and draw its test bound as it goes.

    python examples/compare_gates.py
    python examples/compare_gates.py --binarize none --latent-dim 200 --inclusion 0.01 --batch-size 32 --epochs 11

prints a table and leaves in --output: table.md, table.csv, curves.csv, curves.png, config.json, and for every gate, in
a folder of its name, its curve and its checkpoint. Seconds are the processor's, of all threads of this process and of
training alone, so that they do not depend on what else the machine does (on a GPU they are the host's; see `wall`).
With --resume an interrupted run goes on where it was, and gates may be added to a finished one.
"""

import csv
import dataclasses
import functools
import textwrap
import time
import warnings
from collections.abc import Callable

import matplotlib
import torch
from common.options import run_options, whole
from common.outputs import check_entries, check_output, in_place_of, number, read_json, settings, write_json
from common.running import run
from matplotlib.figure import Figure
from mnist_vsc import DATASETS, load_data
from tqdm.auto import tqdm

import vsc_pyro as vsc
from vsc_pyro._arguments import choice
from vsc_pyro._files import replacing
from vsc_pyro.distributions import StraightThroughThreshold
from vsc_pyro.gates import BinaryConcrete, Gate, get_gate
from vsc_pyro.training.checkpoints import shown
from vsc_pyro.training.devices import resolve_device

EPOCHS = {"digits": 100}
FREE_TO_CHANGE = ("gates", "device", "output", "data_root", "resume", "overwrite", "quiet")


@dataclasses.dataclass(frozen=True)
class Estimator:
    """A gate, and what it is trained with."""

    gate: Gate
    num_draws: int = 1
    objective: str = "analytic"
    final_temperature: float | None = None
    encoder: Callable = vsc.SpikeSlabEncoder

    def schedules(self, num_steps):
        if self.final_temperature is None:
            return None
        ramp = vsc.Ramp(float(self.gate.temperature), self.final_temperature, length=num_steps)
        return {"encoder.gate.temperature": ramp}


NORMAL_THRESHOLD = functools.partial(vsc.ThresholdEncoder, base="normal")
ESTIMATORS = {
    "straight-through": Estimator(get_gate("straight-through")),
    "concrete": Estimator(BinaryConcrete(0.5)),
    "concrete-annealed": Estimator(BinaryConcrete(1.0), final_temperature=0.3),
    "concrete-2": Estimator(BinaryConcrete(0.5), num_draws=2),
    "shifted-sigmoid": Estimator(get_gate("shifted-sigmoid")),
    "score": Estimator(get_gate("score")),
    "leave-one-out": Estimator(get_gate("score"), num_draws=2),
    "leave-one-out-4": Estimator(get_gate("score"), num_draws=4),
    "disarm": Estimator(get_gate("disarm"), num_draws=2),
    "disarm-4": Estimator(get_gate("disarm"), num_draws=4),
    "learned-threshold": Estimator(BinaryConcrete(0.5), encoder=NORMAL_THRESHOLD),
    "published-threshold": Estimator(StraightThroughThreshold(), encoder=NORMAL_THRESHOLD),
    "importance-weighted": Estimator(get_gate("score"), num_draws=5, objective="importance-weighted"),
}
FILES = (
    *("config.json", "table.md", "table.csv", "curves.csv", "curves.png"),
    *(f"{name}/{file}" for name in ESTIMATORS for file in ("curve.json", "checkpoint.pt")),
)
LAST = "curves.png"
POINT = (
    *("epoch", "step", "seconds", "wall", "train_objective", "elbo", "iwae", "expected_l0", "used_latents"),
    "num_test",
)


def parse(argv):
    parser = run_options(__doc__, "runs/compare_gates", "50, and 100 on the small digits", DATASETS)
    add = parser.add_argument
    add("--gates", nargs="+", default=list(ESTIMATORS), metavar="GATE", help=f"of {', '.join(ESTIMATORS)}")
    add("--learn-inclusion", action="store_true", help="learn the inclusion of every latent")
    add("--points", type=whole, default=10, help="how often to evaluate on the way")
    add("--test-data", type=whole, default=2000, help="how many test data to evaluate on, but for the last point")
    args = parser.parse_args(argv)
    try:
        for name in args.gates:
            choice("gate", name, ESTIMATORS)
    except ValueError as error:
        parser.error(f"--gates: {error}")
    return args


def build(args, estimator, shape):
    torch.manual_seed(args.seed)
    return vsc.VAE(
        estimator.encoder(shape, args.latent_dim, args.hidden, gate=estimator.gate),
        vsc.BernoulliDecoder(args.latent_dim, shape, args.hidden[::-1]),
        vsc.SpikeSlabPrior(args.latent_dim, args.inclusion, args.learn_inclusion),
    )


def train_and_watch(model, estimator, train, test, epochs, args, folder):
    """Train `model` in stretches and evaluate after each; the points already in curve.json are not trained anew."""
    file = folder / "curve.json"
    curve = read_json(file, list) if args.resume and file.exists() else []
    for point in curve:
        if not isinstance(point, dict):
            raise ValueError(f"{file} is damaged: it must hold points of a curve, got {shown(point)}")
        check_entries(file, point, dict.fromkeys(POINT, number))
    steps_per_epoch = -(-len(train) // args.batch_size)
    stretches = sorted({round(epochs * (i + 1) / args.points) for i in range(args.points)} - {0})
    first = dataclasses.replace(
        test,
        images=test.images[: args.test_data],
        labels=None if test.labels is None else test.labels[: args.test_data],
    )
    for epoch in tqdm(stretches[len(curve) :], desc="points", disable=args.quiet, leave=False):
        wall, processor = time.perf_counter(), time.process_time()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "schedules.* train longer or ramp sooner")  # the next stretch does
            history = vsc.fit(
                model,
                train,
                objective=estimator.objective,
                num_draws=estimator.num_draws,
                epochs=epoch,
                batch_size=args.batch_size,
                lr=args.lr,
                cooldown=0,  # the next stretch goes on
                schedules=estimator.schedules(epochs * steps_per_epoch),
                device=args.device,
                seed=args.seed,
                checkpoint=folder / "checkpoint.pt",
                checkpoint_every=epochs,
                resume=True,
                progress=not args.quiet,
            )
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        data = test if epoch == epochs else first
        result = vsc.evaluate(model, data, num_draws=args.iwae_draws, seed=args.seed)
        before = curve[-1] if curve else {"wall": 0.0, "seconds": 0.0}
        curve.append(
            {
                "epoch": epoch,
                "step": epoch * steps_per_epoch,
                "seconds": before["seconds"] + processor,
                "wall": before["wall"] + wall,
                "train_objective": history.elbo[-1],
                "elbo": result.elbo,
                "iwae": result.iwae,
                "expected_l0": result.expected_l0,
                "used_latents": result.used_latents,
                "num_test": result.num_data,
            }
        )
        write_json(file, curve)
    return curve


def table_row(name, curve):
    last = curve[-1]
    return {
        "gate": name,
        "draws": str(ESTIMATORS[name].num_draws),
        "ELBO": f"{last['elbo']:.2f}",
        "IW bound": f"{last['iwae']:.2f}",
        "E[L0]": f"{last['expected_l0']:.1f}",
        "used": str(last["used_latents"]),
        "ms a step": f"{1000 * last['seconds'] / last['step']:.1f}",
        "seconds": f"{last['seconds']:.0f}",
    }


def draw(curves, title):
    figure = Figure(figsize=(11, 8), layout="constrained")
    across = {"step": "steps", "seconds": "processor seconds"}
    down = {"elbo": "test ELBO, nats", "iwae": "importance-weighted test bound, nats"}
    grid = figure.subplots(len(down), len(across), sharex="col", sharey="row")
    for row, bound in zip(grid, down, strict=True):
        for axes, field in zip(row, across, strict=True):
            colours = matplotlib.colormaps["tab20"].colors
            for colour, (name, curve) in zip(colours, curves.items(), strict=False):
                xs, ys = ([point[key] for point in curve] for key in (field, bound))
                axes.plot(xs, ys, "o-", ms=3, lw=1.2, color=colour, label=name)
            axes.grid(alpha=0.3)
        # The first points, and all of the worst gate, would squash the others.
        last = sorted(curve[-1][bound] for curve in curves.values())
        row[0].set_ylim(last[len(last) // 2] - 15, last[-1] + 1)
        row[0].set_ylabel(down[bound])
    for axes, label in zip(grid[-1], across.values(), strict=True):
        axes.set_xlabel(label)
    grid[-1][1].legend(fontsize=8, ncols=2, loc="lower right")
    figure.suptitle("\n".join(textwrap.wrap(title, 110)), fontsize=10)
    return figure


def write_csv(path, rows):
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def write_results(args, curves, train, test, epochs):
    rows = [table_row(name, curve) for name, curve in curves.items()]
    protocol = (
        f"{train.name}, binarisation {train.binarize or 'none'}, {epochs} epochs of batches of {args.batch_size}, Adam "
        f"{args.lr:g}, seed {args.seed}, hidden {'-'.join(map(str, args.hidden))}, {args.latent_dim} latents, "
        f"inclusion {'learned from ' if args.learn_inclusion else ''}{args.inclusion:g}; hard spikes, "
        f"{args.iwae_draws} draws, {len(test)} test data"
    )
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    note = (
        f"{protocol} (points before the last: {min(args.test_data, len(test))}). Nats per datum. draws: of each code "
        "in a step. used: latents ever on. Seconds are the processor's."
    )
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{note}\n"
    with replacing(args.output / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_csv(args.output / "table.csv", rows)
    write_csv(args.output / "curves.csv", [{"gate": name} | point for name, curve in curves.items() for point in curve])
    with replacing(args.output / LAST) as temporary:
        draw(curves, protocol).savefig(temporary, dpi=120)
    return text


def main(argv=None):
    args = parse(argv)
    check_output(args, FILES, LAST, FREE_TO_CHANGE)
    train, test = load_data(args)
    resolve_device(args.device)
    epochs = args.epochs or EPOCHS.get(train.name, 50)
    shape = tuple(train.images.shape[1:])
    there = {name for name in ESTIMATORS if args.resume and (args.output / name / "curve.json").exists()}
    models = {name: build(args, e, shape) for name, e in ESTIMATORS.items() if name in there.union(args.gates)}
    next(iter(models.values())).check_data(train.images)

    with in_place_of(args.output, FILES if args.overwrite else (), [f"{name}/checkpoint.pt" for name in ESTIMATORS]):
        write_json(args.output / "config.json", settings(args, FREE_TO_CHANGE))
        curves = {}
        bar = tqdm(models, unit="gate", disable=args.quiet)
        for name in bar:
            bar.set_description(name)
            folder = args.output / name
            try:
                curves[name] = train_and_watch(models[name], ESTIMATORS[name], train, test, epochs, args, folder)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"pass --resume to go on with the run in {args.output}") from None
        text = write_results(args, curves, train, test, epochs)
    print(text, f"results in {args.output}", sep="\n")


if __name__ == "__main__":
    run(main)
