"""Edit the codes of a trained model: one web page that runs the decoder of a finished run in a browser.

    python examples/explore.py runs/mnist_vsc

loads a run of mnist_vsc.py and writes explore.html into its folder (or --output) by `vsc_pyro.explore`: some test
images with their posteriors, a switch and a slider for each latent, and the picture that the edited code decodes to.
The one file contains everything, weights included; it needs no network and can be sent to someone else.
"""

from common.options import add_finished_run, described, natural, path, whole
from common.running import run
from mnist_vsc import load_run

import vsc_pyro as vsc


def parse(argv):
    parser = described(__doc__)
    add_finished_run(parser)
    add = parser.add_argument
    add("--num-data", type=whole, default=48, help="test images on the page")
    add(
        "--seed",
        type=natural,
        default=0,
        help="of the choice of test images, their binarisation, and the draws on the page",
    )
    add("--output", type=path, metavar="FILE", help="default: explore.html in RUN_DIR")
    add("--overwrite", action="store_true", help="replace an existing page")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    output = args.output or args.run / "explore.html"
    if output.exists() and not args.overwrite:
        raise SystemExit(f"{output} exists; pass --overwrite to replace it, or another --output")
    model, settings, metrics, _, test = load_run(args.run, args.data_root)
    page = vsc.explore(
        model,
        test,
        output,
        num_data=args.num_data,
        title=f"{test.name}, {settings.prior} prior",
        settings={name: value for name, value in metrics.items() if value is not None and name != "usage"},
        seed=args.seed,
        overwrite=args.overwrite,
    )
    print(f"{output}, {page.stat().st_size / 1e6:.2f} MB: open it in a browser")


if __name__ == "__main__":
    run(main)
