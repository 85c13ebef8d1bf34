"""Sparse codes of the pictures in a folder: how well a few parts rebuild a picture, and what each part adds.

    python examples/picture_folder.py FOLDER

takes some hundred pictures of one kind, such as faces or leaves, and writes the model and figures to --output.
"""

import torch
from common.files import write_figure
from common.options import add_output, described, path, positive, whole
from common.outputs import refuse_to_replace
from common.running import run

import vsc_pyro as vsc
from vsc_pyro import plots

FIGURES = {
    "reconstructions.png": plots.reconstructions,
    "traversals.png": plots.traversals,
    "loadings.png": lambda model, data: plots.loadings(model, data=data),
}


def main(argv=None):
    parser = described(__doc__)
    parser.add_argument("folder", type=path, help="pictures, in subfolders or not")
    parser.add_argument("--size", type=whole, default=32, help="side to which pictures are cut and resized")
    parser.add_argument("--grey", action="store_true", help="without colours")
    parser.add_argument("--latent-dim", type=whole, default=64, help="parts")
    parser.add_argument("--beta", type=positive, default=10.0, help="larger for fewer parts in a picture")
    parser.add_argument("--epochs", type=whole, help="default: that of vsc.fit")
    add_output(parser, "runs/picture_folder")
    args = parser.parse_args(argv)
    refuse_to_replace(args, *FIGURES)
    train, test = vsc.datasets.images(args.folder, args.size, args.grey, seed=args.seed)
    shape = tuple(train.shape[1:])
    torch.manual_seed(args.seed)
    model = vsc.VAE(
        vsc.SpikeSlabEncoder(shape, args.latent_dim),
        vsc.NormalDecoder(args.latent_dim, shape, hidden=()),  # a picture is a sum of parts
        vsc.SpikeSlabPrior(args.latent_dim, inclusion=0.1),
        beta=args.beta,
    )
    vsc.fit(model, train, epochs=args.epochs, device=args.device, seed=args.seed, progress=not args.quiet)
    found = vsc.evaluate(model, test, seed=args.seed)
    print(found)
    model.save(args.output / "model", data=train, evaluation=found, overwrite=args.overwrite)
    for name, plot in FIGURES.items():
        write_figure(args.output / name, plot(model, test), dpi=110)


if __name__ == "__main__":
    run(main)
