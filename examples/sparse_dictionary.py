"""Train a sparse dictionary, the sparse autoencoder with a posterior, on vectors in files or on known features.

    python examples/sparse_dictionary.py --data activations --num-features 4096 --expected-active 32 --steps 20000

reads the .npy and .safetensors files of a folder, each of shape (n, d), larger than memory if need be. Without --data
it makes its own vectors of known features, so that the dictionary and its probabilities can be compared with the truth.
Writes to --output: metrics.json; checkpoint.pt, from which --resume goes on; figures; features.html, a page about the
features; and sae/, the model as a sparse autoencoder in files (with the package safetensors; `vsc_pyro.sae.load`).
"""

import importlib.util
import itertools

import torch
from common.files import write_figure, write_json
from common.options import add_output, described, path, positive, whole
from common.outputs import check_output, resumable, settings
from common.running import run

import vsc_pyro as vsc
from vsc_pyro import plots

FIGURES = ("firing_densities.png", "reliability.png", "feature_cosines.png")
FILES = ("metrics.json", "config.json", "checkpoint.pt", "features.html", *FIGURES)
NO_SAE = "sae/ is not written without the package safetensors: pip install 'vsc-pyro[sae]'"
FREE = {
    "test_data",
    "steps",
    "output",
    "device",
    "quiet",
    "overwrite",
    "resume",
}  # settings that a resumption may change
TEST_BATCHES = 20


def parse(argv):
    parser = described(__doc__)
    add = parser.add_argument
    add(
        "--data",
        type=path,
        help="folder of .npy or .safetensors files, to train and to test on; default: a world of known features",
    )
    add("--test-data", type=path, help="folder of files to test on; default: rows of --data, mostly trained on")
    structures = ["independent", "correlated", "hierarchical"]
    add("--structure", default="hierarchical", choices=structures, help="of the world")
    add("--true-features", type=whole, default=512, help="of the world")
    add("--dim", type=whole, default=64, help="of the world")
    add("--num-features", type=whole, default=128, help="atoms of the dictionary")
    add("--expected-active", type=positive, default=5.0, help="features of a datum, before training")
    add("--noise", type=positive, help="share of the data's standard deviation, below 1; default: learned")
    objectives = ["nested", "exact"]
    add("--objective", default="nested", choices=objectives, help="exact: for a good reconstruction, with --noise")
    add("--slab", default="normal", choices=["normal", "truncated-normal"], help="of any sign, or positive")
    add("--steps", type=whole, default=1500, help="of training")
    add("--batch-size", type=whole, default=1024, help="data in a step")
    add("--lr", type=positive, help="default: that of the model")
    add_output(parser, "runs/sparse_dictionary")
    add("--resume", action="store_true", help="continue the run in --output")
    args = parser.parse_args(argv)
    if args.test_data is not None and args.data is None:
        parser.error("--test-data is for --data; leave it out, or name a folder to train on")
    args.data, args.test_data = (None if folder is None else str(folder) for folder in (args.data, args.test_data))
    return args


def sources(args):
    """Return the stream to train on, test data, and the true dictionary or None."""
    if args.data is None:
        size = {"expected_active": args.expected_active, "structure": args.structure, "batch_size": args.batch_size}
        world = vsc.datasets.features(args.true_features, args.dim, seed=args.seed, **size)
        return world, world.sample(TEST_BATCHES * args.batch_size, seed=1), world.dictionary
    stream = vsc.datasets.shards(args.data, args.batch_size, seed=args.seed)
    if args.test_data is None:
        share = min(1.0, args.steps * args.batch_size / len(stream))
        print(f"test data are rows of the same files, of which training reads {share:.0%}; --test-data names others")
    test = vsc.datasets.shards(args.test_data or args.data, args.batch_size, seed=args.seed + 1)
    return stream, vsc.Dataset(torch.cat(list(itertools.islice(test, TEST_BATCHES)))), None


def draw(found):
    figures = {"firing_densities.png": plots.firing_densities({"dictionary": found})}
    if found.mcc == found.mcc:  # with a truth
        figures["reliability.png"] = plots.reliability({"dictionary": found})
        figures["feature_cosines.png"] = plots.feature_cosines({"dictionary": found})
    return figures


def main(argv=None):
    args = parse(argv)
    check_output(args, FILES, "metrics.json", FREE)
    stream, test, truth = sources(args)
    torch.manual_seed(args.seed)
    kind = {"expected_active": args.expected_active, "noise": args.noise, "slab": args.slab}
    model = vsc.SparseDictionary(test.images.shape[1], args.num_features, **kind)
    config = settings(args, FREE)
    with resumable(args, FILES, config):
        options = {"objective": args.objective, "lr": args.lr, "device": args.device, "seed": args.seed}
        options |= {"progress": not args.quiet, "checkpoint": args.output / "checkpoint.pt", "resume": args.resume}
        history = vsc.fit(model, stream, steps=args.steps, **options)
        found = vsc.evaluate_dictionary(model, test, dictionary=truth)
        print(found)
        for name, figure in draw(found).items():
            write_figure(args.output / name, figure, dpi=110)
        title = f"{args.data or args.structure}, {args.num_features} features"
        page = {"dictionary": truth, "title": title, "overwrite": True}
        vsc.feature_pages(model, test, args.output / "features.html", **page)
        if importlib.util.find_spec("safetensors") is None:
            print(NO_SAE)
        else:
            vsc.sae.export(model, args.output / "sae", overwrite=True)
        seconds = round(sum(history.seconds), 1)
        metrics = {
            **found.as_dict(),
            "test_data": args.test_data or args.data,
            "steps": args.steps,
            "seconds": seconds,
            "settings": config,
        }
        write_json(args.output / "metrics.json", metrics)
    return found


if __name__ == "__main__":
    run(main)
