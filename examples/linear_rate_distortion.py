"""Linear models of image patches: the gain from an exact objective, and a comparison with scikit-learn's sparse coding.

    python examples/linear_rate_distortion.py

trains one model, spike-and-slab codes of whitened patches with a linear decoder, by objective="exact", which draws no
codes, and by objectives that draw codes, each at all learning rates of --lr. It measures

* the steps and seconds of each objective to the *target*, the best bound that any sampled objective reaches. Bounds are
  in closed form, on test patches; seconds are processor time of one thread, of training steps only;
* the squared error of test patches against the number of latents that are on (L0), for several inclusions and noises,
  beside dictionary learning (Mairal et al., 2009) with as many atoms and the same training patches, coded by orthogonal
  matching pursuit (OMP) and by the LASSO. A code of ours is the posterior mean of the latents with inclusion above 1/2,
  or least squares on their atoms ("refitted"). OMP takes a fixed number of atoms for each patch, or adds an atom while
  the gain in squared error is large enough. OMP with our dictionary separates the effects of dictionary and encoder.

It writes to --output, for each of the two, a figure and a table as CSV and Markdown, and metrics.json.
"""

import time
import warnings

import numpy as np
import pyro
import torch
from common.files import markdown, write_csv, write_figure, write_json, write_text
from common.options import add_output, described, positive, whole
from common.outputs import in_place_of, refuse_to_replace, settings
from common.running import run
from matplotlib.figure import Figure
from tqdm.auto import tqdm

import vsc_pyro as vsc
from vsc_pyro.objectives import ExactELBO, get_objective

# By name: objective, gate, and draws of each code.
OBJECTIVES = {
    "exact": ("exact", "concrete", 1),
    "analytic, concrete": ("analytic", "concrete", 1),
    "analytic, straight-through": ("analytic", "straight-through", 1),
    "analytic, straight-through, 4 draws": ("analytic", "straight-through", 4),
    "analytic, score": ("analytic", "score", 1),
    "trace, concrete": ("trace", "concrete", 1),
}
OURS = ("posterior mean", "refitted")
_ROWS = 500  # linear systems that are solved at once
FILES = ("bounds.csv", "bounds.md", "bounds.png", "errors.csv", "errors.md", "errors.png", "metrics.json")


def parse(argv):
    parser = described(__doc__)
    add = parser.add_argument
    add("--size", type=whole, default=12, help="side of a patch")
    add("--num-patches", type=whole, default=50_000)
    add("--num-test", type=whole, default=5_000)
    add("--latent-dim", type=whole, default=144, help="number of atoms, also for scikit-learn")
    add("--inclusion", type=float, default=0.05, help="prior probability that a latent is on, for the bounds")
    add("--inclusions", type=float, nargs="+", default=[0.01, 0.05, 0.2], help="for the curve of errors")
    add("--noise", type=positive, default=0.7, help="standard deviation of a pixel given its code; marginally it is 1")
    add("--noises", type=positive, nargs="+", default=[0.7, 0.4], help="for the curve of errors")
    add("--steps", type=whole, default=4_000)
    add("--measurements", type=whole, default=40, help="number of measurements in a run")
    add("--warmup", type=whole, default=1_000, help="steps in which the KL divergence's weight rises from 0.1 to 1")
    add("--batch-size", type=whole, default=200)
    add("--lr", type=positive, nargs="+", default=[1e-3, 3e-3], help="learning rates of each objective")
    add("--sparsities", type=whole, nargs="+", default=[1, 2, 3, 5, 8, 12, 18, 25, 35], help="atoms per patch for OMP")
    add(
        "--gains",
        type=positive,
        nargs="+",
        default=[1.0, 2.0, 3.0, 4.0, 6.0, 9.0, 14.0],
        help="for OMP, least gain in squared error by one more atom",
    )
    add("--penalties", type=positive, nargs="+", default=[0.6, 1.0, 1.5, 2.0, 3.0, 4.0], help="penalties of the LASSO")
    add("--passes", type=whole, default=4, help="most passes of scikit-learn over the training patches")
    add_output(parser, "runs/linear_rate_distortion", device=False)
    return parser.parse_args(argv)


def build(args, shape, inclusion, noise, gate="concrete"):
    torch.manual_seed(args.seed)
    decoder = vsc.NormalDecoder(args.latent_dim, shape, hidden=(), scale=noise)
    encoder = vsc.SpikeSlabEncoder(shape, args.latent_dim, gate=gate)
    return vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(args.latent_dim, inclusion))


def exact_bound(model, x):
    """Return the ELBO in nats per datum, in closed form."""
    with model.evaluating():
        return -ExactELBO(max_plate_nesting=1).loss(model.model, model.guide, x) / len(x)


def train(model, x, objective, lr, args, test=None):
    """Train `model`; with test patches, return measurements: steps and processor seconds so far, and test bound."""
    optimizer = torch.optim.Adam(model.parameters(), lr, fused=True)
    generator = torch.Generator().manual_seed(args.seed)
    # Under a full KL from the start, latents are switched off before their atoms have learnt, and stay off.
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
                model.beta = 1.0  # other weights give no ELBO
                rows.append((step, seconds, exact_bound(model, test)))
                if not np.isfinite(rows[-1][-1]):
                    raise vsc.NonFiniteLossError(f"the bound became {rows[-1][-1]} at step {step}; try a lower --lr")
    model.beta = 1.0
    return rows


def compare_objectives(args, x, test, bar):
    """Return the trained models and their measurements, by name of the objective and learning rate."""
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
    """Return steps and seconds of the first measurement that reaches the target, or None for both."""
    return next(((step, seconds) for step, seconds, bound in rows if bound >= target), (None, None))


def bounds_table(runs):
    """Return the target, and a table with a row for each run."""
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
    # The bounds of the first steps are far below the others.
    ends = [bound for name, lr in best.items() for _, _, bound in runs[name, lr][len(runs[name, lr]) // 5 :]]
    axes[0].set_ylim(min(ends), max(ends) + 0.05 * (max(ends) - min(ends)) + 1e-6)
    axes[0].set_ylabel("test bound, nats per patch")
    axes[0].legend(
        fontsize=7, title="objective (learning rate)", title_fontsize=7, loc="lower right", bbox_to_anchor=(1, 0.06)
    )
    return figure


def refit(atoms, support, x):
    """Return the mean squared error of least squares on the atoms in the support of each datum.

    Arrays have shapes (J, D), (N, J) and (N, D).
    """
    atoms, support, x = (torch.as_tensor(array, dtype=torch.float64) for array in (atoms, support, x))
    gram, errors = atoms @ atoms.T, []
    ridge = 1e-9 * gram.diagonal().mean()  # equal atoms make the system singular
    for on, data in zip(support.split(_ROWS), x.split(_ROWS), strict=True):
        system = on[:, :, None] * gram * on[:, None] + torch.diag_embed(1 - on + ridge)
        codes = torch.linalg.solve(system, on * (data @ atoms.T))
        errors.append((data - codes @ atoms).square().sum(1))
    return torch.cat(errors).mean().item()


def our_errors(model, test):
    """Return L0, and the squared errors of posterior means and of least squares on the latents that are on."""
    x = test.flatten(1)
    with model.evaluating():
        posterior = model.encoder(test).base_dist
        on = (posterior.probs > 0.5).to(x)
        atoms, bias = model.decoder.dictionary.flatten(1), model.decoder.pixels(torch.zeros(1, on.shape[1])).flatten(1)
        error = (x - bias - (on * posterior.mean) @ atoms).square().sum(1).mean().item()
    return on.sum(1).mean().item(), error, refit(atoms, on, x - bias)


def point(coder, setting, l0, error):
    return {"coder": coder, "setting": setting, "L0": l0, "squared error": error}


def omp_path(x, atoms):
    """Return squared errors and numbers of atoms, shape (J + 1, N), of OMP codes of 0 to all J atoms (unit rows)."""
    from sklearn.linear_model import orthogonal_mp_gram

    gram, found = atoms @ atoms.T, []
    for row in x:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\s*Orthogonal matching pursuit ended")  # no error is left
            path = orthogonal_mp_gram(gram, atoms @ row, n_nonzero_coefs=len(atoms), return_path=True)
        steps = path.reshape(len(atoms), -1).T  # fewer than J for a row that needs fewer
        codes = np.zeros((len(atoms) + 1, len(atoms)))
        codes[1 : len(steps) + 1] = steps
        codes[len(steps) + 1 :] = codes[len(steps)]
        found.append((np.square(row - codes @ atoms).sum(1), (codes != 0).sum(1)))
    errors, on = np.array(found).transpose(1, 2, 0)
    return errors, on


def omp_errors(coder, dictionaries, x, args):
    """Yield points of OMP; each setting takes the dictionary (unit rows, by name) with the least error.

    One kind of setting is a number of atoms for all patches. The other is a gain: the number of atoms of each patch
    minimises squared error plus gain times number. Like codes under a sparse prior or penalty, empty patches then take
    few atoms, and others more, up to all of them.
    """
    codings = {name: omp_path(x, atoms) for name, atoms in dictionaries.items()}
    for k in sorted({min(k, args.latent_dim) for k in args.sparsities}):
        error, on, name = min((errors[k].mean(), on[k].mean(), name) for name, (errors, on) in codings.items())
        yield point(coder, f"{k} atoms{name}", float(on), float(error))
    for gain in args.gains:
        best = []
        for name, (errors, on) in codings.items():
            chosen = (errors + gain * on).argmin(0)[None]
            error, l0 = (np.take_along_axis(values, chosen, 0).mean() for values in (errors, on))
            best.append((error + gain * l0, error, l0, name))
        _, error, l0, name = min(best)
        yield point(f"{coder} by gain", f"gain of {gain:g} an atom{name}", float(l0), float(error))


def our_points(args, x, test, lr, bar):
    """Yield points of our models, for each noise and inclusion."""
    for noise in args.noises:
        for inclusion in args.inclusions:
            setting = f"inclusion {inclusion:g}, noise {noise:g}"
            bar.set_description(setting)
            model = build(args, tuple(x.shape[1:]), inclusion, noise)
            train(model, x, get_objective("exact"), lr, args)
            l0, of_means, refitted = our_errors(model, test)
            yield point("posterior mean", setting, l0, of_means)
            yield point("refitted", setting, l0, refitted)
            bar.update()


def lasso_points(args, x, test, bar):
    """Return points of dictionary learning coded by the LASSO, and the dictionaries; x and test are centred arrays."""
    from sklearn.decomposition import MiniBatchDictionaryLearning, sparse_encode

    points, dictionaries = [], {}
    for penalty in args.penalties:
        bar.set_description(f"LASSO, penalty {penalty:g}")
        how = {"max_iter": args.passes, "batch_size": 256, "fit_algorithm": "cd", "random_state": args.seed}
        atoms = MiniBatchDictionaryLearning(args.latent_dim, alpha=penalty, **how).fit(x).components_
        dictionaries[f", learnt at penalty {penalty:g}"] = atoms
        codes = sparse_encode(test, atoms, algorithm="lasso_cd", alpha=penalty)
        l0, error = (codes != 0).sum(1).mean(), np.square(test - codes @ atoms).sum(1).mean()
        points.append(point("LASSO", f"penalty {penalty:g}", float(l0), float(error)))
        refitted = refit(atoms, codes != 0, test)
        points.append(point("LASSO, refitted", f"penalty {penalty:g}", float(l0), refitted))
        bar.update()
    return points, dictionaries


def compare_coders(args, x, test, reference, lr, bar):
    """Return points of L0 and squared error per test patch: of our models, and of scikit-learn."""
    points = list(our_points(args, x, test, lr, bar))
    flat, flat_test = (data.flatten(1).double().numpy() for data in (x, test))
    atoms = reference.decoder.dictionary.detach().flatten(1).double().numpy()
    bias = reference.decoder.network[0].bias.detach().double().numpy()
    unit = atoms / np.linalg.norm(atoms, axis=1, keepdims=True).clip(1e-12)
    points += omp_errors("our dictionary, OMP", {"": unit}, flat_test - bias, args)
    bar.update()
    mean = flat.mean(0)
    lasso, dictionaries = lasso_points(args, flat - mean, flat_test - mean, bar)
    bar.set_description("OMP")
    points += [*lasso, *omp_errors("OMP", dictionaries, flat_test - mean, args)]
    bar.update()
    return points


def errors_figure(points, energy):
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    curves = {}
    for p in points:  # our models have a curve for each noise
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
    """Write `name`.csv and `name`.md, and return the latter: the table, and notes on it."""
    write_csv(args.output / f"{name}.csv", rows)
    text = f"{markdown(rows)}\n\n{about}\n"
    write_text(args.output / f"{name}.md", text)
    return text


def main(argv=None):
    args = parse(argv)
    refuse_to_replace(args, *FILES)
    torch.set_num_threads(1)
    # The finest gratings are mostly noise; the regularisation leaves them out of the whitening.
    train_set, test_set = vsc.datasets.patches(
        args.size, args.num_patches, args.num_test, args.seed, regularisation=0.1
    )
    x, test = train_set.images, test_set.images
    for inclusion in (args.inclusion, *args.inclusions):
        build(args, tuple(x.shape[1:]), inclusion, args.noise)  # a bad value fails before the first training
    with in_place_of(args.output, FILES, worth_keeping=FILES):
        metrics, text = compare(args, x, test)
    print(text, f"results in {args.output}", sep="\n")
    return metrics


def compare(args, x, test):
    """Make both comparisons, write them, and return the metrics and the tables as text."""
    num_runs = len(OBJECTIVES) * len(args.lr)
    num_fits = len(args.noises) * len(args.inclusions) + len(args.penalties) + 2
    with tqdm(total=num_runs + num_fits, unit="fit", disable=args.quiet) as bar:
        models, runs = compare_objectives(args, x, test, bar)
        target, text = write_bounds(args, runs, len(test))
        best = max((run for run in runs if run[0] == "exact"), key=lambda run: runs[run][-1][2])
        points = compare_coders(args, x, test, models[best], best[1], bar)
    energy = test.square().flatten(1).sum(1).mean().item()
    text += "\n" + write_errors(args, points, energy, len(test))
    curves = [{"objective": name, "lr": lr, "curve": rows} for (name, lr), rows in runs.items()]
    metrics = {"target": target, "bounds": curves, "errors": points, "energy": energy}
    write_json(args.output / "metrics.json", metrics | {"settings": settings(args, ("output",))})
    return metrics, text


def write_bounds(args, runs, num_test):
    """Write table and figure of the bounds, and return the target and the table as text."""
    target, table = bounds_table(runs)
    about = (
        f"{num_test} test patches, {args.latent_dim} latents, inclusion {args.inclusion:g}, noise {args.noise:g}; "
        f"{args.steps} steps of {args.batch_size} patches, the weight of the KL rises from 0.1 to 1 in the first "
        f"{args.warmup}; seed {args.seed}. Target: {target:.2f} nats, the best bound of a sampled objective; measured "
        f"every {max(1, args.steps // args.measurements)} steps. Seconds are processor time of one thread."
    )
    write_figure(args.output / "bounds.png", bounds_figure(runs, target), dpi=110)
    return target, write_table(args, "bounds", table, about)


def write_errors(args, points, energy, num_test):
    """Write table and figure of the squared errors, and return the table as text."""
    rows = [
        {k: v if isinstance(v, str) else f"{v:.2f}" for k, v in p.items()}
        | {"share of energy": f"{p['squared error'] / energy:.3f}"}
        for p in points
    ]
    about = (
        f"Means over {num_test} test patches, with mean squared norm {energy:.1f}; {args.latent_dim} atoms each. OMP: "
        "each setting takes the LASSO dictionary with the least error on these patches. By gain: the number of atoms "
        "of each patch minimises its squared error plus the gain times the number. Our dictionary: inclusion "
        f"{args.inclusion:g}, noise {args.noise:g}."
    )
    write_figure(args.output / "errors.png", errors_figure(points, energy), dpi=110)
    return write_table(args, "errors", rows, about)


if __name__ == "__main__":
    run(main)
