"""Table and figure of gate_gradients.py, which calls this script; alone, it repeats them for a finished run.

    python examples/gradient_report.py runs/gate_gradients

reads gradients.json in that folder and writes gradients.md, gradients.csv and gradients.png beside it.
"""

from statistics import median

from common.files import markdown, read_json, write_csv, write_figure, write_text
from common.options import described, path
from common.running import run
from matplotlib import colormaps
from matplotlib.figure import Figure

TARGETS = "logits", "weights"
MARKERS = "osD^vP*X"
OFF_SCALE = 100  # times the median variance; larger variances are written below the panel, not plotted


def is_bounded(row, results):
    """Return True if only an upper bound of the bias is known."""
    return row["bias_z"] <= results["significant"]


def variance_of(row):
    """Return the variance at equal work: that of a step times its decoder passes."""
    return row["variance_times_passes"]


def heading(state):
    return f"{state['latents']} latents, {state['state']} ({state['epochs']} epochs)"


def table(state, results):
    """Return a row for each estimator, with the gradients by log-odds and by weights side by side."""
    rows = {}
    for row in state["rows"]:
        about = {"estimator": row["estimator"], "passes": str(row["passes"]), "ms": f"{row['ms']:.1f}"}
        cells = {
            "bias": f"< {row['bias_below']:.2g}" if is_bounded(row, results) else f"{row['bias']:.2g}",
            "variance": f"{row['variance']:.3g}",
            "SNR": f"{row['snr']:.3g}",
            "SNR / ms": f"{row['snr_per_ms']:.3g}",
            "cosine": "-" if row["cosine"] is None else f"{row['cosine']:.2f}",
        }
        rows.setdefault(row["estimator"], about).update({f"{row['of']}: {k}": cell for k, cell in cells.items()})
    return markdown(list(rows.values()))


def remarks(state, settings):
    """Return a paragraph: the source of the true gradient, its error, and the estimators with most SNR per ms."""
    source = f"{settings['reference_draws']} draws of disarm"
    if state["exact"]:
        source = f"all {2 ** state['latents']} patterns of spikes, {settings['slab_draws']} draws of the slabs"
    errors = ", ".join(f"{100 * state['truth'][of]['relative_standard_error']:.1f}% ({of})" for of in TARGETS)
    best = []
    for of in TARGETS:
        rows = sorted((row for row in state["rows"] if row["of"] == of), key=lambda row: -row["snr_per_ms"])
        unbiased = next(row["estimator"] for row in rows if row["unbiased"])
        best.append(f"{rows[0]['estimator']} (of the unbiased: {unbiased}) by {of}")
    return (
        f"{state['expected_l0']:.2f} latents on per image. Truth: {source}; its standard error is {errors} of its norm "
        f"and is not part of the biases above. Most SNR per millisecond: {'; '.join(best)}."
    )


def report(results):
    settings = results["settings"]
    paragraphs = [
        f"{results['dataset']}, binarisation {results['binarize'] or 'none'}; hidden "
        f"{'-'.join(map(str, settings['hidden']))}, inclusion {settings['inclusion']:g}, trained with the default gate "
        f"and objective in batches of {settings['batch_size']}, seed {settings['seed']}. Gradients of the mean over "
        f"{settings['images']} fixed images; variances are over draws only. passes: of the decoder, per image and "
        f"step; each row used {settings['passes']}. ms: CPU time of a whole step of {settings['batch_size']} images on "
        f"one thread, median of {settings['timed_steps']} steps, the estimators in turn; measured at initialisation, "
        "because it does not depend on the weights. <: no significant bias; the value is an upper bound, "
        f"{results['significant']:g} standard errors above the estimate. cosine: of a biased gradient with the truth."
    ]
    for state in results["states"]:
        paragraphs += [f"### {heading(state)}", table(state, results), remarks(state, settings)]
    return "\n\n".join(paragraphs) + "\n"


def looks_of(rows):
    """Return colour and marker of each estimator: a colour for each gate, a marker for each of its estimators."""
    gates = {}
    for row in rows:
        gates.setdefault(row["gate"], {})[row["estimator"]] = None
    return {
        name: (colormaps["tab10"](index % 10), MARKERS[position % len(MARKERS)])
        for index, names in enumerate(gates.values())
        for position, name in enumerate(names)
    }


def draw_state(panel, state, results, of, looks):
    """Plot bias and variance of each estimator of one state; an arrow marks an upper bound of the bias."""
    rows = [row for row in state["rows"] if row["of"] == of]
    top = OFF_SCALE * median(map(variance_of, rows))
    off = [f"{row['estimator']} {variance_of(row):.0e}" for row in rows if variance_of(row) > top]
    if off:
        panel.set_xlabel(f"off the scale: {', '.join(off)}", loc="right", fontsize=8)
    for row in (row for row in rows if variance_of(row) <= top):
        color, marker = looks[row["estimator"]]
        bounded = is_bounded(row, results)
        x, y = row["bias_below" if bounded else "bias"], variance_of(row)
        panel.scatter(x, y, s=45, marker=marker, edgecolors=[color], facecolors="none" if bounded else [color])
        if bounded:
            arrow = {"arrowstyle": "->", "color": color, "shrinkA": 4}
            panel.annotate("", (0.8 * x, y), (x, y), arrowprops=arrow)
    panel.set(xscale="log", yscale="log", title=heading(state))
    panel.grid(alpha=0.3)


def figure_of(results, of="logits"):
    """Return a figure of bias against variance at equal work, with a panel for each state."""
    states = results["states"]
    num_sizes = len({state["latents"] for state in states})
    figure = Figure(figsize=(12.5, 0.8 + 3.4 * num_sizes), layout="constrained")
    panels = figure.subplots(num_sizes, len(states) // num_sizes, squeeze=False, sharex=True, sharey="row")
    looks = looks_of(states[0]["rows"])
    for panel, state in zip(panels.flat, states, strict=True):
        draw_state(panel, state, results, of, looks)
    panels[0, 0].set_xlim(left=0.75 * panels[0, 0].get_xlim()[0])  # room for the arrows
    figure.supxlabel(f"relative bias of the gradient by {of} (hollow, with an arrow: upper bound)")
    figure.supylabel("variance x decoder passes, relative to the squared norm of the true gradient")
    for name, (color, marker) in looks.items():
        panels[0, 0].scatter([], [], s=45, color=[color], marker=marker, label=name)
    figure.legend(loc="outside right center", fontsize=9)
    return figure


def write_report(folder):
    """Write table and figure of the results in `folder`, and return the table."""
    results = read_json(folder / "gradients.json")
    try:
        text, figure = report(results), figure_of(results)
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{folder / 'gradients.json'} is damaged ({error!r}); run gate_gradients.py again") from error
    write_text(folder / "gradients.md", text)
    shared = "latents", "state", "epochs"
    rows = [{key: state[key] for key in shared} | row for state in results["states"] for row in state["rows"]]
    write_csv(folder / "gradients.csv", rows)
    write_figure(folder / "gradients.png", figure, dpi=100)
    return text


def main(argv=None):
    parser = described(__doc__)
    parser.add_argument("folder", type=path, help="output folder of gate_gradients.py")
    print(write_report(parser.parse_args(argv).folder))


if __name__ == "__main__":
    run(main)
