"""Take a trained model's codes into your own hands: one web page that runs the decoder of a finished run in a browser.

    python examples/explore.py runs/mnist_vsc

loads a run of mnist_vsc.py and writes explore.html beside it (or --output): some test images with their posteriors, a
switch and a slider for every latent, and the picture that they decode to. Everything is in that one file, weights
included, so that it needs no network and can be sent to someone else.
"""

import argparse
import base64
import json
from pathlib import Path

import torch
from common.options import natural, path, whole
from common.running import run
from mnist_vsc import load_run

from vsc_pyro.arguments import choice
from vsc_pyro.distributions import centre, inclusion_logits, slab_of
from vsc_pyro.files import replacing

TEMPLATE = Path(__file__).with_suffix(".html")
# In JavaScript, each with the settings that it has in vsc_pyro.networks.ACTIVATIONS.
ACTIVATIONS = {
    "relu": "x => Math.max(x, 0)",
    "leaky-relu": "x => (x > 0 ? x : 0.01 * x)",
    "elu": "x => (x > 0 ? x : Math.expm1(x))",
    "gelu": "x => (x / 2) * (1 + erf(x / Math.SQRT2))",
    "silu": "x => x * sigmoid(x)",
    "softplus": "softplus",
    "tanh": "Math.tanh",
}
# One draw of the slab's family, of location 0 and scale 1.
DRAWS = {
    "Normal": "() => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform())",
    "Laplace": "() => Math.log(uniform()) - Math.log(uniform())",
    "Cauchy": "() => Math.tan(Math.PI * (uniform() - 0.5))",
}


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=path, metavar="RUN_DIR", help="where mnist_vsc.py left a finished run")
    add("--data-root", type=path, help="folder that holds MNIST/raw or FashionMNIST/raw")
    add("--num-data", type=whole, default=48, help="test images on the page")
    add("--seed", type=natural, default=0, help="of the choice of test images, their binarisation and the page's draws")
    add("--output", type=path, metavar="FILE", help="default: explore.html in RUN_DIR")
    add("--overwrite", action="store_true", help="replace the page that is there")
    return parser.parse_args(argv)


def packed(tensor):
    """The tensor's numbers as base64 of little-endian float32."""
    return base64.b64encode(tensor.detach().cpu().contiguous().numpy().astype("<f4").tobytes()).decode()


def some_data(test, num, seed):
    """Indices of test data, by label, their images, and what a model sees of them."""
    if num > len(test):
        raise ValueError(f"--num-data must be at most {len(test)}, the number of test images, got {num}")
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(len(test), generator=generator)[:num]
    if test.labels is not None:
        indices = indices[test.labels[indices].argsort(stable=True)]
    return indices, test.images[indices], test.draw(indices, generator)


def posterior_of(model, x):
    """Inclusion probabilities, None if every latent is always on, and the slab (then the posterior itself)."""
    with model.evaluating():
        posterior = model.encoder(x)
    logits = inclusion_logits(posterior)
    return None if logits is None else logits.sigmoid(), slab_of(posterior)


def layers(decoder):
    linear = [layer for layer in decoder.network if isinstance(layer, torch.nn.Linear)]
    return [{"weight": packed(layer.weight), "bias": packed(layer.bias)} for layer in linear]


def text(value):
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def page(args):
    """The whole page, as text."""
    model, settings, metrics, _, test = load_run(args.run, args.data_root)
    activation = choice("activation of the page's decoder", settings.decoder_activation, ACTIVATIONS)
    indices, images, seen = some_data(test, args.num_data, args.seed)
    gamma, slab = posterior_of(model, seen)
    draw = choice("slab of the page's draws", type(slab).__name__, DRAWS)
    height, width = images.shape[-2:]
    run = {
        "settings": {name: text(v) for name, v in metrics.items() if v is not None and name != "usage"},
        "dataset": test.name,
        "prior": settings.prior,
        "hidden": settings.hidden[::-1],
        "activation": settings.decoder_activation,
        "latents": model.decoder.latent_dim,
        "height": height,
        "width": width,
        "binary": bool(((seen == 0) | (seen == 1)).all()),
        "seed": args.seed,
        "indices": indices.tolist(),
        "labels": None if test.labels is None else test.labels[indices].tolist(),
        "images": packed(images),
        "seen": packed(seen),
        "gamma": None if gamma is None else packed(gamma),
        "centre": packed(centre(slab)),
        "scale": packed(slab.scale),
        "layers": layers(model.decoder),
    }
    embedded = json.dumps(run).replace("<", "\\u003c")  # no name can end the script that holds it
    template = TEMPLATE.read_text(encoding="utf-8")
    return template.replace("{{activation}}", activation).replace("{{draw}}", draw).replace("{{run}}", embedded)


def main(argv=None):
    args = parse(argv)
    output = args.output or args.run / "explore.html"
    if output.exists() and not args.overwrite:
        raise SystemExit(f"{output} exists; pass --overwrite to replace it, or another --output")
    content = page(args)
    with replacing(output) as temporary:
        temporary.write_text(content, encoding="utf-8")
    print(f"{output}, {output.stat().st_size / 1e6:.2f} MB: open it in a browser")


if __name__ == "__main__":
    run(main)
