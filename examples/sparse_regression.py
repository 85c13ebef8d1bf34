"""Sparse regression in a Pyro model of one's own: 100 data, 200 coefficients, 8 of them not zero.

    python examples/sparse_regression.py

prints the inclusion probabilities above 5 % and writes all of them to sparse_regression.png.
"""

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure

import vsc_pyro as vsc


def model(x, y):
    weights = pyro.sample("weights", vsc.SpikeSlab(dist.Normal(torch.zeros(200), 1.0), probs=0.05).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x * weights).sum(-1), noise), obs=y)


if __name__ == "__main__":
    torch.manual_seed(0)
    x, true = torch.randn(100, 200), torch.tensor([1.5, -1.5, 1.0, -1.0, 0.7, -0.7, 0.4, -0.4] + 192 * [0.0])
    y = x @ true + 0.7 * torch.randn(100)
    guide = vsc.AutoSpikeSlab(model)
    elbo = vsc.AnalyticELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    svi = vsc.SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.996}), elbo)
    for _ in range(1000):
        svi.step(x, y)
    inclusion, median = guide.inclusion()["weights"], guide.median()["weights"]
    for j in (inclusion > 0.05).nonzero().flatten().tolist():
        print(f"weight {j:3d}: inclusion {inclusion[j]:.3f}, median {median[j]:6.3f}, true {true[j]:6.3f}")
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(200), inclusion, color=["tab:red" if weight else "tab:grey" for weight in true])
    axes.set(xlabel="coefficient (red: not zero in truth)", ylabel="inclusion probability", xlim=(-2, 200))
    figure.savefig("sparse_regression.png", dpi=120)
