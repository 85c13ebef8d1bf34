"""Train a model with stock Pyro alone: stock SVI, stock Adam and stock Trace_ELBO, with correct gradients.

    python examples/bare_svi.py

Two models are trained one after the other, each in its own parameter store. Pyro's store is global: without the scopes,
the second model would register its parameters under the names of the first.
"""

import pyro
import torch
from common.options import described
from common.running import run
from pyro.infer import SVI, Trace_ELBO

import vsc_pyro as vsc


def train(gate, data, steps, seed):
    torch.manual_seed(seed)
    model = vsc.VAE(
        encoder=vsc.SpikeSlabEncoder((1, 8, 8), latent_dim=16, hidden=(100,), gate=gate),
        decoder=vsc.BernoulliDecoder(16, (1, 8, 8), hidden=(100,)),
        prior=vsc.SpikeSlabPrior(16, inclusion=0.2),
    )
    with pyro.get_param_store().scope():
        svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        for _ in range(steps):
            svi.step(data.draw(torch.randint(len(data), (100,))))
    return model


def main(argv=None):
    parser = described(__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    train_part, test_part = vsc.datasets.load("digits")
    results = {}
    for gate in ("concrete", "straight-through"):
        results[gate] = vsc.evaluate(train(gate, train_part, args.steps, args.seed), test_part)
        print(f"gate {gate}: {results[gate]}\n")
    return results


if __name__ == "__main__":
    run(main)
