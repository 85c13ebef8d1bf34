"""What exactness buys a linear model of image patches, and where its codes stand beside scikit-learn's sparse coding.

    python examples/linear_rate_distortion.py

trains the same model, spike-and-slab codes of whitened patches under a linear decoder, by objective="exact", which
draws nothing, and by objectives that draw codes, each at every learning rate of --lr; and measures

* how many steps and seconds each takes to the *target*, the best bound that any sampled objective ends with. Bounds are
  those of the test patches, in closed form; seconds are the processor's, of one thread, of training steps alone;
* the squared error of test patches against the number of latents that are on (L0), for several inclusions and noises,
  beside dictionary learning (Mairal et al., 2009) coded by orthogonal matching pursuit (OMP) and by the LASSO, with as
  many atoms and the same training patches. A code here is the posterior mean of the latents with inclusion above 1/2,
  or least squares on them ("refitted"); OMP gives all patches as many atoms, or each as many as gain enough. Our
  dictionary coded by OMP tells the dictionary's part from the encoder's.

It leaves in --output, for each of the two, a figure and a table as CSV and Markdown, and metrics.json.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import pyro
import torch
from common.options import natural, path, positive, whole
from common.outputs import in_place_of, refuse_to_replace, settings, write_json
from common.running import run
from matplotlib.figure import Figure
from tqdm.auto import tqdm

import vsc_pyro as vsc
from vsc_pyro._files import replacing
from vsc_pyro.objectives import ExactELBO, get_objective

# Name: objective, gate, draws of each code.
OBJECTIVES = {
    "exact": ("exact", "concrete", 1),
    "analytic, concrete": ("analytic", "concrete", 1),
    "analytic, straight-through": ("analytic", "straight-through", 1),
    "analytic, straight-through, 4 draws": ("analytic", "straight-through", 4),
    "analytic, score": ("analytic", "score", 1),
    "trace, concrete": ("trace", "concrete", 1),
}
OURS = ("posterior mean", "refitted")
_ROWS = 500  # systems of equations solved at once
FILES = ("bounds.csv", "bounds.md", "bounds.png", "errors.csv", "errors.md", "errors.png", "metrics.json")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", type=whole, default=12, help="side of a patch")
    add("--num-patches", type=whole, default=50_000)
    add("--num-test", type=whole, default=5_000)
    add("--latent-dim", type=whole, default=144, help="number of atoms, scikit-learn's too")
    add("--inclusion", type=float, default=0.05, help="prior probability that a latent is on, when bounds are compared")
    add("--inclusions", type=float, nargs="+", default=[0.01, 0.05, 0.2], help="of the curve of errors")
    add("--noise", type=positive, default=0.7, help="standard deviation of a pixel given its code; the data's is 1")
    add("--noises", type=positive, nargs="+", default=[0.7, 0.4], help="of the curve of errors")
    add("--steps", type=whole, default=4_000)
    add("--measurements", type=whole, default=40, help="how often a run is measured")
    add("--warmup", type=whole, default=1_000, help="steps in which the KL divergence's weight rises from 0.1 to 1")
    add("--batch-size", type=whole, default=200)
    add("--lr", type=positive, nargs="+", default=[1e-3, 3e-3], help="learning rates that each objective is run at")
    add("--sparsities", type=whole, nargs="+", default=[1, 2, 3, 5, 8, 12, 18, 25, 35], help="atoms per patch of OMP")
    add("--gains", type=positive, nargs="+", default=[1.0, 2.0, 3.0, 4.0, 6.0, 9.0, 14.0], help="per atom, of OMP")
    add("--penalties", type=positive, nargs="+", default=[0.6, 1.0, 1.5, 2.0, 3.0, 4.0], help="of the LASSO")
    add("--passes", type=whole, default=4, help="of scikit-learn over the training patches, at most")
    add("--seed", type=natural, default=0)
    add("--output", type=path, default=Path("runs/linear_rate_distortion"), metavar="DIR")
    add("--overwrite", action="store_true", help="replace the results that are there")
    add("--quiet", action="store_true", help="no progress bars")
    return parser.parse_args(argv)


def build(args, shape, inclusion, noise, gate="concrete"):
    torch.manual_seed(args.seed)
    decoder = vsc.NormalDecoder(args.latent_dim, shape, hidden=(), scale=noise)
    encoder = vsc.SpikeSlabEncoder(shape, args.latent_dim, gate=gate)
    return vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(args.latent_dim, inclusion))


def exact_bound(model, x):
    """The ELBO in nats per datum, in closed form."""
    with model.evaluating():
        return -ExactELBO(max_plate_nesting=1).loss(model.model, model.guide, x) / len(x)


def train(model, x, objective, lr, args, test=None):
    """Train `model`; rows of steps, processor seconds of training so far, and test bound, if there are test patches."""
    optimizer = torch.optim.Adam(model.parameters(), lr, fused=True)
    generator = torch.Generator().manual_seed(args.seed)
    # Latents that the divergence switches off before their atoms have learnt anything stay off.
    warmup = vsc.Ramp(0.1, 1.0, length=args.warmup)
    every = max(1, args.steps // args.measurements)
    rows, seconds = [], 0.0
    torch.manual_seed(args.seed)
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        svi = vsc.SVI(model.model, model.guide, optimizer, objective)
        for step in range(1, args.steps + 1):
            batch = x[torch.randint(len(x), (args.batch_size,), generator=generator)]
            model.beta = warmup(step - 1)
            start = time.process_time()
            svi.step(batch)
            seconds += time.process_time() - start
            if test is not None and (step % every == 0 or step == args.steps):
                model.beta = 1.0  # for the bound is one at no other
                rows.append((step, seconds, exact_bound(model, test)))
                if not np.isfinite(rows[-1][-1]):
                    raise vsc.NonFiniteLossError(f"the bound became {rows[-1][-1]} at step {step}; try a lower --lr")
    model.beta = 1.0
    return rows


def compare_objectives(args, x, test, bar):
    """Models and their rows, by name of the objective and learning rate."""
    models, runs = {}, {}
    for name, (objective, gate, num_draws) in OBJECTIVES.items():
        for lr in args.lr:
            bar.set_description(f"{name}, {lr:g}")
            model = build(args, tuple(x.shape[1:]), args.inclusion, args.noise, gate)
            runs[name, lr] = train(model, x, get_objective(objective, num_draws), lr, args, test)
            models[name, lr] = model
            bar.update()
    return models, runs


def time_to(target, rows):
    """Steps and seconds at the first measurement of at least that bound; None if there is none."""
    return next(((step, seconds) for step, seconds, bound in rows if bound >= target), (None, None))


def bounds_table(runs):
    """The target, and a row for each run."""
    target = max(bound for (name, _), rows in runs.items() if name != "exact" for _, _, bound in rows)
    table = []
    for (name, lr), rows in runs.items():
        steps, seconds = time_to(target, rows)
        table.append(
            {
                "objective": name,
                "learning rate": f"{lr:g}",
                "ms a step": f"{1000 * rows[-1][1] / rows[-1][0]:.2f}",
                "best bound": f"{max(bound for _, _, bound in rows):.2f}",
                "last bound": f"{rows[-1][2]:.2f}",
                "steps to target": "" if steps is None else str(steps),
                "seconds to target": "" if seconds is None else f"{seconds:.1f}",
            }
        )
    return target, table


def bounds_figure(runs, target):
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    best = {}
    for (name, lr), rows in runs.items():
        if name not in best or rows[-1][2] > runs[name, best[name]][-1][2]:
            best[name] = lr
    for index, label in enumerate(("steps", "processor seconds of training")):
        for name, lr in best.items():
            columns = list(zip(*runs[name, lr], strict=True))
            style = {"color": "black", "linewidth": 2.2} if name == "exact" else {"linewidth": 1.2}
            axes[index].plot(columns[index], columns[2], label=f"{name} ({lr:g})", **style)
        axes[index].axhline(target, color="grey", linewidth=0.8, linestyle=":")
        axes[index].set_xlabel(label)
        axes[index].grid(alpha=0.3)
    # The first steps are far below, and would leave the rest no room.
    ends = [bound for name, lr in best.items() for _, _, bound in runs[name, lr][len(runs[name, lr]) // 5 :]]
    axes[0].set_ylim(min(ends), max(ends) + 0.05 * (max(ends) - min(ends)) + 1e-6)
    axes[0].set_ylabel("test bound, nats per patch")
    axes[0].legend(
        fontsize=7, title="objective (learning rate)", title_fontsize=7, loc="lower right", bbox_to_anchor=(1, 0.06)
    )
    return figure


def refit(atoms, support, x):
    """Squared errors of least squares on the atoms in each datum's support; arrays (J, D), (N, J) and (N, D)."""
    atoms, support, x = (torch.as_tensor(array, dtype=torch.float64) for array in (atoms, support, x))
    gram, errors = atoms @ atoms.T, []
    ridge = 1e-9 * gram.diagonal().mean()  # for atoms that are the same
    for on, data in zip(support.split(_ROWS), x.split(_ROWS), strict=True):
        system = on[:, :, None] * gram * on[:, None] + torch.diag_embed(1 - on + ridge)
        codes = torch.linalg.solve(system, on * (data @ atoms.T))
        errors.append((data - codes @ atoms).square().sum(1))
    return torch.cat(errors).mean().item()


def our_errors(model, test):
    """L0, and the squared errors of posterior means and of least squares on the latents that are on."""
    x = test.flatten(1)
    with model.evaluating():
        posterior = model.encoder(test).base_dist
        on = (posterior.probs > 0.5).to(x)
        atoms, bias = model.decoder.dictionary.flatten(1), model.decoder.pixels(torch.zeros(1, on.shape[1])).flatten(1)
        error = (x - bias - (on * posterior.mean) @ atoms).square().sum(1).mean().item()
    return on.sum(1).mean().item(), error, refit(atoms, on, x - bias)


def point(coder, setting, l0, error):
    return {"coder": coder, "setting": setting, "L0": l0, "squared error": error}


def omp_errors(coder, dictionaries, x, args):
    """Points of OMP, of each setting with that dictionary of several (of unit rows, by name) which serves it best.

    With a number of atoms for all patches; and with a number for each, where an atom more must take at least a certain
    gain off the squared error (as in codes that are sparse by a prior or a penalty, empty patches then leave atoms to
    others).
    """
    from sklearn.decomposition import sparse_encode

    numbers = sorted({min(k, args.latent_dim) for k in args.sparsities})
    energy, codings = np.square(x).sum(1), {}
    for name, atoms in dictionaries.items():
        codes = [sparse_encode(x, atoms, algorithm="omp", n_nonzero_coefs=k) for k in numbers]
        errors = [energy, *(np.square(x - code @ atoms).sum(1) for code in codes)]
        on = [np.zeros(len(x)), *((code != 0).sum(1) for code in codes)]
        codings[name] = np.stack(errors), np.stack(on)
    for index, k in enumerate(numbers, start=1):
        error, on, name = min((errors[index].mean(), on[index].mean(), name) for name, (errors, on) in codings.items())
        yield point(coder, f"{k} atoms{name}", float(on), float(error))
    for gain in args.gains:
        best = []
        for name, (errors, on) in codings.items():
            chosen = (errors + gain * on).argmin(0)[None]
            error, l0 = (np.take_along_axis(values, chosen, 0).mean() for values in (errors, on))
            best.append((error + gain * l0, error, l0, name))
        _, error, l0, name = min(best)
        yield point(f"{coder} by gain", f"gain of {gain:g} an atom{name}", float(l0), float(error))


def compare_coders(args, x, test, reference, lr, bar):
    """Points of L0 and squared error per test patch: ours, by inclusion and noise, and scikit-learn's."""
    from sklearn.decomposition import MiniBatchDictionaryLearning, sparse_encode

    points = []
    for noise in args.noises:
        for inclusion in args.inclusions:
            setting = f"inclusion {inclusion:g}, noise {noise:g}"
            bar.set_description(setting)
            model = build(args, tuple(x.shape[1:]), inclusion, noise)
            train(model, x, get_objective("exact"), lr, args)
            l0, of_means, refitted = our_errors(model, test)
            points += [point("posterior mean", setting, l0, of_means), point("refitted", setting, l0, refitted)]
            bar.update()
    flat, flat_test = (data.flatten(1).double().numpy() for data in (x, test))
    atoms = reference.decoder.dictionary.detach().flatten(1).double().numpy()
    bias = reference.decoder.network[0].bias.detach().double().numpy()
    unit = atoms / np.linalg.norm(atoms, axis=1, keepdims=True).clip(1e-12)
    points += omp_errors("our dictionary, OMP", {"": unit}, flat_test - bias, args)
    bar.update()
    mean = flat.mean(0)
    flat, flat_test = flat - mean, flat_test - mean
    dictionaries = {}
    for penalty in args.penalties:
        bar.set_description(f"LASSO, penalty {penalty:g}")
        how = {"max_iter": args.passes, "batch_size": 256, "fit_algorithm": "cd", "random_state": args.seed}
        learner = MiniBatchDictionaryLearning(args.latent_dim, alpha=penalty, **how)
        atoms = learner.fit(flat).components_
        dictionaries[f", learnt at penalty {penalty:g}"] = atoms
        codes = sparse_encode(flat_test, atoms, algorithm="lasso_cd", alpha=penalty)
        l0, error = (codes != 0).sum(1).mean(), np.square(flat_test - codes @ atoms).sum(1).mean()
        points.append(point("LASSO", f"penalty {penalty:g}", float(l0), float(error)))
        refitted = refit(atoms, codes != 0, flat_test)
        points.append(point("LASSO, refitted", f"penalty {penalty:g}", float(l0), refitted))
        bar.update()
    bar.set_description("OMP")
    points += omp_errors("OMP", dictionaries, flat_test, args)
    bar.update()
    return points


def errors_figure(points, energy):
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    curves = {}
    for p in points:  # ours, a curve for each noise
        curve = curves.setdefault((p["coder"], p["setting"].partition(", noise ")[2]), [])
        curve.append((p["L0"], p["squared error"]))
    colours = {coder: f"C{index}" for index, coder in enumerate(dict.fromkeys(coder for coder, _ in curves))}
    for (coder, noise), curve in curves.items():
        style = {"color": "black", "linewidth": 2} if coder in OURS else {"color": colours[coder], "linewidth": 1.2}
        dashed = "--" if coder.endswith(("refitted", "by gain")) else "-"
        label = f"{coder}, noise {noise}" if noise else coder
        axes.plot(*zip(*sorted(curve), strict=True), dashed, marker="o", markersize=3, label=label, **style)
    axes.axhline(energy, color="grey", linewidth=0.8, linestyle=":", label="no latent on")
    axes.set(xlabel="latents or atoms on per patch (L0)", ylabel="squared error per test patch", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def write_table(args, name, rows, about):
    """`name`.csv and .md, the latter with what a reader has to know."""
    with (
        replacing(args.output / f"{name}.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    text = "\n".join("| " + " | ".join(str(cell) or "-" for cell in line) + " |" for line in lines)
    with replacing(args.output / f"{name}.md") as temporary:
        temporary.write_text(f"{text}\n\n{about}\n", encoding="utf-8")
    return f"{text}\n\n{about}\n"


def write_figure(args, name, figure):
    with replacing(args.output / f"{name}.png") as temporary:
        figure.savefig(temporary, dpi=110)


def main(argv=None):
    args = parse(argv)
    refuse_to_replace(args, *FILES)
    torch.set_num_threads(1)
    # Noise of the finest gratings is not worth a code: whitening stops short of it.
    train_set, test_set = vsc.datasets.patches(
        args.size, args.num_patches, args.num_test, args.seed, regularisation=0.1
    )
    x, test = train_set.images, test_set.images
    for inclusion in (args.inclusion, *args.inclusions):
        build(args, tuple(x.shape[1:]), inclusion, args.noise)  # which may refuse it: before anything is trained
    with in_place_of(args.output, FILES, worth_keeping=FILES):
        metrics, text = compare(args, x, test)
    print(text, f"results in {args.output}", sep="\n")
    return metrics


def compare(args, x, test):
    """Both comparisons, written; metrics, and the tables as text."""
    num_runs = len(OBJECTIVES) * len(args.lr)
    num_fits = len(args.noises) * len(args.inclusions) + len(args.penalties) + 2
    with tqdm(total=num_runs + num_fits, unit="fit", disable=args.quiet) as bar:
        models, runs = compare_objectives(args, x, test, bar)
        target, table = bounds_table(runs)
        about = (
            f"{len(test)} test patches, {args.latent_dim} latents, inclusion {args.inclusion:g}, noise {args.noise:g}; "
            f"{args.steps} steps of {args.batch_size} patches, the divergence's weight from 0.1 to 1 in the first "
            f"{args.warmup}; seed {args.seed}. Target: {target:.2f} nats, the best of any sampled objective; measured "
            f"every {max(1, args.steps // args.measurements)} steps. Seconds are the processor's, one thread."
        )
        text = write_table(args, "bounds", table, about)
        write_figure(args, "bounds", bounds_figure(runs, target))
        best = max((run for run in runs if run[0] == "exact"), key=lambda run: runs[run][-1][2])
        points = compare_coders(args, x, test, models[best], best[1], bar)
    energy = test.square().flatten(1).sum(1).mean().item()
    rows = [
        {k: v if isinstance(v, str) else f"{v:.2f}" for k, v in p.items()}
        | {"share of energy": f"{p['squared error'] / energy:.3f}"}
        for p in points
    ]
    about = (
        f"Means over {len(test)} test patches, whose squared norm is {energy:.1f}; {args.latent_dim} atoms each. OMP: "
        "for each setting the dictionary, of those learnt for the LASSO, that serves these patches best; by gain: "
        "every patch is given the number of atoms that minimises its squared error plus the gain times the number. "
        f"Our dictionary: of inclusion {args.inclusion:g}, noise {args.noise:g}."
    )
    text += "\n" + write_table(args, "errors", rows, about)
    write_figure(args, "errors", errors_figure(points, energy))
    curves = [{"objective": name, "lr": lr, "curve": rows} for (name, lr), rows in runs.items()]
    metrics = {"target": target, "bounds": curves, "errors": points, "energy": energy}
    write_json(args.output / "metrics.json", metrics | {"settings": settings(args, ("output",))})
    return metrics, text


if __name__ == "__main__":
    run(main)
