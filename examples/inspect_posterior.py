"""Report on a run of mnist_vsc.py: what the model infers, what its latents mean, and whether it can be trusted.

    python examples/inspect_posterior.py runs/mnist_vsc

writes by `vsc_pyro.report` to --output, by default the folder inspection of the run: posterior.nc, an ArviZ object for
`arviz.from_netcdf`; the figures; and report.html. That file contains all figures and tables; it needs no network and
can be sent to someone else.
"""

import sys
import time
import warnings

import matplotlib
import torch
from common.options import add_finished_run, described, natural, path, whole
from common.outputs import in_place_of
from common.running import run
from mnist_vsc import load_run

import vsc_pyro as vsc
from vsc_pyro.pages import REPORT_FILES

UNSEEN = {"mnist": "fashion-mnist", "fashion-mnist": "mnist"}  # other data of the same shape
FILES = ("report.html", *REPORT_FILES)
MEASURED = ("epochs", "test_elbo", "test_iwae", "test_kl", "expected_l0", "hard_l0", "hoyer", "active_units")


def parse(argv):
    parser = described(__doc__)
    add_finished_run(parser)
    add = parser.add_argument
    add("--compare", type=path, nargs="+", default=[], metavar="RUN_DIR", help="other finished runs on the same data")
    add("--num-data", type=whole, default=16, help="test images with their posterior in the report")
    add("--num-samples", type=whole, default=500, help="draws of the code of each image")
    add("--seed", type=natural, default=0)
    add("--output", type=path, metavar="DIR", help="default: inspection in RUN_DIR")
    add("--overwrite", action="store_true", help="replace an existing report")
    return parser.parse_args(argv)


def comparable(folder, args, data):
    """Return the model of another run; raise `ValueError` if its data differ."""
    if folder.resolve() == args.run.resolve():
        raise ValueError(f"--compare {folder} is the run itself; name another")
    model, _, _, _, test = load_run(folder, args.data_root)
    if (test.name, test.binarize) != (data.name, data.binarize):
        raise ValueError(
            f"--compare {folder} is of {test.name}, binarisation {test.binarize}, and {args.run} of "
            f"{data.name}, {data.binarize}; compare runs of the same data"
        )
    return model


def unseen(args, test):
    """Return other data of the same shape by name, if they are at hand."""
    if test.name not in UNSEEN:
        return {}
    try:
        other = vsc.datasets.load(UNSEEN[test.name], args.data_root, None, download=False).test
    except FileNotFoundError as error:
        print(f"{UNSEEN[test.name]} is not at hand and is left out of the report ({error})", file=sys.stderr)
        return {}
    # Binarised like the test data of the model: bounds of data that are binarised otherwise do not compare.
    return {other.name: other.binarized(test.binarize, torch.Generator().manual_seed(args.seed))}


def main(argv=None):
    args = parse(argv)
    start = time.perf_counter()
    output = args.output or args.run / "inspection"
    there = [output / name for name in FILES if (output / name).exists()]
    if there and not args.overwrite:
        raise SystemExit(
            f"{output} holds a report ({there[0].name}); pass --overwrite to replace it, or another --output"
        )
    matplotlib.use("Agg")  # ArviZ would open windows
    model, settings, metrics, train, test = load_run(args.run, args.data_root)
    others = {str(folder): comparable(folder, args, test) for folder in args.compare}
    with in_place_of(output, FILES):  # the report of another model may have had more files
        page = vsc.report(
            model,
            test,
            output / "report.html",
            train=train,
            unseen=unseen(args, test),
            compare=others,
            title=f"{test.name}, {settings.prior} prior, {settings.latent_dim} latents",
            settings={"run": str(args.run), **{name: metrics[name] for name in MEASURED}},
            files=output,
            num_data=args.num_data,
            num_samples=args.num_samples,
            seed=args.seed,
        )
    seconds = time.perf_counter() - start
    print(f"{page}, {page.stat().st_size / 1e6:.1f} MB, and {output / 'posterior.nc'} in {seconds:.0f} s")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)
    run(main)
