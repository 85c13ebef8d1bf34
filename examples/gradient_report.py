"""The table and the figure of gate_gradients.py, which calls this; by itself it draws those of a finished run anew.

    python examples/gradient_report.py runs/gate_gradients

reads gradients.json in that folder and writes gradients.md, gradients.csv and gradients.png beside it.
"""

import argparse
import csv
from statistics import median

from common.options import path
from common.outputs import read_json
from common.running import run
from matplotlib import colormaps
from matplotlib.figure import Figure

from vsc_pyro._files import replacing

TARGETS = "logits", "weights"
MARKERS = "osD^vP*X"
OFF_SCALE = 100  # times the median variance, beyond which a point would only squeeze the others together


def is_bounded(row, results):
    """Whether no more than an upper bound of the bias is known."""
    return row["bias_z"] <= results["significant"]


def variance_of(row):
    """At equal work: that of a step, times its decoder passes."""
    return row["variance_times_passes"]


def heading(state):
    return f"{state['latents']} latents, {state['state']} ({state['epochs']} epochs)"


def table(state, results):
    """A line for each estimator, the gradients by log-odds and by weights side by side."""
    columns = "bias", "variance", "SNR", "SNR / ms", "cosine"
    heads = ["estimator", "passes", "ms", *(f"{of}: {column}" for of in TARGETS for column in columns)]
    lines = {}
    for row in state["rows"]:
        line = lines.setdefault(row["estimator"], [row["estimator"], str(row["passes"]), f"{row['ms']:.1f}"])
        line.append(f"< {row['bias_below']:.2g}" if is_bounded(row, results) else f"{row['bias']:.2g}")
        line += [f"{row[key]:.3g}" for key in ("variance", "snr", "snr_per_ms")]
        line.append("-" if row["cosine"] is None else f"{row['cosine']:.2f}")
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *lines.values()])


def remarks(state, settings):
    """Where the truth of one state comes from, how well it is known, and who has most signal for its milliseconds."""
    how = f"{settings['reference_draws']} draws of disarm"
    if state["exact"]:
        how = f"all {2 ** state['latents']} patterns of spikes, {settings['slab_draws']} draws of the slabs"
    errors = ", ".join(f"{100 * state['truth'][of]['relative_standard_error']:.1f}% ({of})" for of in TARGETS)
    best = []
    for of in TARGETS:
        rows = sorted((row for row in state["rows"] if row["of"] == of), key=lambda row: -row["snr_per_ms"])
        unbiased = next(row["estimator"] for row in rows if row["unbiased"])
        best.append(f"{rows[0]['estimator']}, of the unbiased {unbiased} ({of})")
    return (
        f"{state['expected_l0']:.2f} latents on per image. Truth: {how}; its standard error, which no bias above "
        f"contains, is {errors} of its norm. Most SNR per millisecond: {'; '.join(best)}."
    )


def markdown(results):
    settings = results["settings"]
    paragraphs = [
        f"{results['dataset']}, binarisation {results['binarize'] or 'none'}; hidden "
        f"{'-'.join(map(str, settings['hidden']))}, inclusion {settings['inclusion']:g}, trained with the default gate "
        f"and objective in batches of {settings['batch_size']}, seed {settings['seed']}. Gradients of the mean over "
        f"{settings['images']} fixed images; variances are of the draws alone. passes: of the decoder, for each image "
        f"in a step; {settings['passes']} went into every row. ms: CPU time on one thread of a whole step of "
        f"{settings['batch_size']} images, median of {settings['timed_steps']}, the estimators taking turns; measured "
        "at initialisation, since it does not depend on the weights. <: no bias was seen, and what there may be is "
        f"below that, by {results['significant']:g} standard errors. cosine: between a biased gradient and the true."
    ]
    for state in results["states"]:
        paragraphs += [f"### {heading(state)}", table(state, results), remarks(state, settings)]
    return "\n\n".join(paragraphs) + "\n"


def figure_of(results, of="logits"):
    """Bias against variance at equal work, a panel for each state; one colour for each gate."""
    states = results["states"]
    num_sizes = len({state["latents"] for state in states})
    figure = Figure(figsize=(12.5, 0.8 + 3.4 * num_sizes), layout="constrained")
    panels = figure.subplots(num_sizes, len(states) // num_sizes, squeeze=False, sharex=True, sharey="row")
    gates, looks = {}, {}
    for row in states[0]["rows"]:
        of_gate = gates.setdefault(row["gate"], [])
        if row["estimator"] not in of_gate:
            of_gate.append(row["estimator"])
            looks[row["estimator"]] = (
                colormaps["tab10"](list(gates).index(row["gate"]) % 10),
                MARKERS[(len(of_gate) - 1) % len(MARKERS)],
            )
    for panel, state in zip(panels.flat, states, strict=True):
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
    panels[0, 0].set_xlim(left=0.75 * panels[0, 0].get_xlim()[0])  # room for the arrows
    figure.supxlabel(f"bias of the gradient by {of}, relative (hollow, with an arrow: below this, none was seen)")
    figure.supylabel("variance x decoder passes, relative to the true gradient's square")
    for name, (color, marker) in looks.items():
        panels[0, 0].scatter([], [], s=45, color=[color], marker=marker, label=name)
    figure.legend(loc="outside right center", fontsize=9)
    return figure


def write_report(folder):
    """Table and figure of the results in `folder`; returns the table."""
    results = read_json(folder / "gradients.json")
    try:
        text, figure = markdown(results), figure_of(results)
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{folder / 'gradients.json'} is damaged ({error!r}); run gate_gradients.py anew") from error
    with replacing(folder / "gradients.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    shared = "latents", "state", "epochs"
    rows = [{key: state[key] for key in shared} | row for state in results["states"] for row in state["rows"]]
    with replacing(folder / "gradients.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with replacing(folder / "gradients.png") as temporary:
        figure.savefig(temporary, dpi=100)
    return text


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=path, help="that gate_gradients.py wrote to")
    print(write_report(parser.parse_args(argv).folder))


if __name__ == "__main__":
    run(main)
