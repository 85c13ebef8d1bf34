"""Sparse codes of the pictures in a folder: how well they rebuild a picture, and what each latent adds to it.

    python examples/picture_folder.py FOLDER

Writes model checkpoint and figures to --output. Some hundred pictures of one kind, such as faces or leaves, will do.
"""

import torch
from common.files import write_figure
from common.options import add_output, described, path, whole
from common.outputs import refuse_to_replace
from common.running import run

import vsc_pyro as vsc
from vsc_pyro import plots

FILES = ("checkpoint.pt", "reconstructions.png", "traversals.png")


def main(argv=None):
    parser = described(__doc__)
    parser.add_argument("folder", type=path, help="pictures, in subfolders or not")
    parser.add_argument("--size", type=whole, default=64, help="side to which pictures are resized")
    parser.add_argument("--grey", action="store_true", help="without colours")
    parser.add_argument("--latent-dim", type=whole, default=32)
    parser.add_argument("--epochs", type=whole, help="default: that of vsc.fit")
    add_output(parser, "runs/picture_folder")
    args = parser.parse_args(argv)
    refuse_to_replace(args, *FILES)
    train, test = vsc.datasets.images(args.folder, args.size, args.grey)
    shape = tuple(train.shape[1:])
    torch.manual_seed(0)
    model = vsc.VAE(
        vsc.SpikeSlabEncoder(shape, args.latent_dim),
        vsc.NormalDecoder(args.latent_dim, shape, hidden=()),  # a picture is a sum of parts
        vsc.SpikeSlabPrior(args.latent_dim, inclusion=0.2, learn_inclusion=True, learn_slab=True),
    )
    vsc.fit(model, train, epochs=args.epochs, checkpoint=args.output / "checkpoint.pt")
    print(vsc.evaluate(model, test))
    write_figure(plots.reconstructions(model, test), args.output / "reconstructions.png")
    write_figure(plots.traversals(model, test), args.output / "traversals.png")


if __name__ == "__main__":
    run(main)
