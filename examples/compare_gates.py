"""Train one model with each gate, on the same data for the same number of steps, and plot its test bound meanwhile.

    python examples/compare_gates.py
    python examples/compare_gates.py --binarize none --latent-dim 200 --inclusion 0.01 --batch-size 32 --epochs 11

prints a table and writes to --output: table.md, table.csv, curves.csv, curves.png, config.json, and for each gate, in
a folder of its name, its curve and its checkpoint. Seconds are processor time of all threads of this process while it
trains, so that other programs on the machine do not affect them (on a GPU they are seconds of the host; see `wall`).
With --resume an interrupted run continues, and a finished one takes further gates.
"""

import dataclasses
import functools
import textwrap
import time
import warnings
from collections.abc import Callable

import matplotlib
import torch
from common.data import DATASETS, load_data
from common.files import check_entries, markdown, number, read_json, write_csv, write_figure, write_json, write_text
from common.options import run_options, whole
from common.outputs import check_output, resumable, settings
from common.running import run
from matplotlib.figure import Figure
from tqdm.auto import tqdm

import vsc_pyro as vsc
from vsc_pyro._arguments import choice
from vsc_pyro._devices import resolve_device
from vsc_pyro.distributions import StraightThroughThreshold
from vsc_pyro.gates import BinaryConcrete, Gate, get_gate
from vsc_pyro.training.checkpoints import shown

EPOCHS = {"digits": 100}
FREE_TO_CHANGE = ("gates", "device", "output", "data_root", "resume", "overwrite", "quiet")


@dataclasses.dataclass(frozen=True)
class Estimator:
    """A gate, and the settings it is trained with."""

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
    add("--gates", nargs="+", default=list(ESTIMATORS), metavar="GATE", help=f"some of {', '.join(ESTIMATORS)}")
    add("--learn-inclusion", action="store_true", help="learn the inclusion of each latent")
    add("--points", type=whole, default=10, help="number of evaluations during training")
    add("--test-data", type=whole, default=2000, help="test data of all evaluations but the last")
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
    """Return the test bound in the course of training: fit in stretches, and evaluate after each of them.

    With --resume, the points that curve.json already has are not computed again.
    """
    curve = read_curve(folder / "curve.json") if args.resume else []
    ends = sorted({round(epochs * (i + 1) / args.points) for i in range(args.points)} - {0})
    for end in tqdm(ends[len(curve) :], desc="points", disable=args.quiet, leave=False):
        wall, processor = time.perf_counter(), time.process_time()
        history = train_until(end, model, estimator, train, epochs, args, folder / "checkpoint.pt")
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        data = test if end == epochs else test[: args.test_data]
        result = vsc.evaluate(model, data, num_draws=args.iwae_draws, seed=args.seed)
        before = curve[-1] if curve else {"wall": 0.0, "seconds": 0.0}
        curve.append(
            {
                "epoch": end,
                "step": end * steps_per_epoch(train, args),
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
        write_json(folder / "curve.json", curve)
    return curve


def read_curve(file):
    """Return the points in `file`, or none if it does not exist."""
    curve = read_json(file, list) if file.exists() else []
    for point in curve:
        if not isinstance(point, dict):
            raise ValueError(f"{file} is damaged: it must hold points of a curve, got {shown(point)}")
        check_entries(file, point, dict.fromkeys(POINT, number))
    return curve


def steps_per_epoch(data, args):
    return -(-len(data) // args.batch_size)


def train_until(epoch, model, estimator, data, epochs, args, checkpoint):
    """Continue from the checkpoint to the end of `epoch`, with the schedules of a run of `epochs`."""
    with warnings.catch_warnings():
        # A ramp over the whole run does not end in this stretch.
        warnings.filterwarnings("ignore", "schedules.* train longer or ramp sooner")
        return vsc.fit(
            model,
            data,
            objective=estimator.objective,
            num_draws=estimator.num_draws,
            epochs=epoch,
            batch_size=args.batch_size,
            lr=args.lr,
            cooldown=0,  # another stretch follows
            schedules=estimator.schedules(epochs * steps_per_epoch(data, args)),
            device=args.device,
            seed=args.seed,
            checkpoint=checkpoint,
            checkpoint_every=epochs,
            resume=True,
            progress=not args.quiet,
        )


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
        # The first points, and the worst gate, lie far below; on their scale the other curves coincide.
        last = sorted(curve[-1][bound] for curve in curves.values())
        row[0].set_ylim(last[len(last) // 2] - 15, last[-1] + 1)
        row[0].set_ylabel(down[bound])
    for axes, label in zip(grid[-1], across.values(), strict=True):
        axes.set_xlabel(label)
    grid[-1][1].legend(fontsize=8, ncols=2, loc="lower right")
    figure.suptitle("\n".join(textwrap.wrap(title, 110)), fontsize=10)
    return figure


def write_results(args, curves, train, test, epochs):
    rows = [table_row(name, curve) for name, curve in curves.items()]
    protocol = (
        f"{train.name}, binarisation {train.binarize or 'none'}, {epochs} epochs of batches of {args.batch_size}, Adam "
        f"{args.lr:g}, seed {args.seed}, hidden {'-'.join(map(str, args.hidden))}, {args.latent_dim} latents, "
        f"inclusion {'learned from ' if args.learn_inclusion else ''}{args.inclusion:g}; hard spikes, "
        f"{args.iwae_draws} draws, {len(test)} test data"
    )
    note = (
        f"{protocol} (points before the last: {min(args.test_data, len(test))}). Nats per datum. draws: of each code "
        "in a step. used: latents ever on. Seconds are processor time."
    )
    text = f"{markdown(rows)}\n\n{note}\n"
    write_text(args.output / "table.md", text)
    write_csv(args.output / "table.csv", rows)
    write_csv(args.output / "curves.csv", [{"gate": name} | point for name, curve in curves.items() for point in curve])
    write_figure(args.output / LAST, draw(curves, protocol), dpi=120)
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

    config, checkpoints = settings(args, FREE_TO_CHANGE), [f"{name}/checkpoint.pt" for name in ESTIMATORS]
    with resumable(args, FILES, config, checkpoints):
        curves = {}
        bar = tqdm(models, unit="gate", disable=args.quiet)
        for name in bar:
            bar.set_description(name)
            folder = args.output / name
            curves[name] = train_and_watch(models[name], ESTIMATORS[name], train, test, epochs, args, folder)
        text = write_results(args, curves, train, test, epochs)
    print(text, f"results in {args.output}", sep="\n")


if __name__ == "__main__":
    run(main)
