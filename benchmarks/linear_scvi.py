"""LinearSCVI (Svensson et al., 2020) on the splits of examples/counts.py, in an environment that has scvi-tools.

    python benchmarks/linear_scvi.py cells.npz --seeds 0 1 2 3 4

Prints the accuracy of a logistic regression on the latent means of held-out cells, and the importance-weighted bound of
100 draws, in nats per cell given its observed sum of counts. Settings are those of scvi-tools, but for the number of
latents and the negative binomial without inflation of zeros that the example's models have.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata
import numpy as np
import scvi
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--latent-dim", type=int, default=20)
    parser.add_argument("--epochs", type=int, help="default: that of scvi-tools for so many cells")
    args = parser.parse_args(argv)
    file = np.load(args.data)
    for seed in args.seeds:
        scvi.settings.seed = seed
        rows = train_test_split(np.arange(len(file["y"])), test_size=0.25, stratify=file["y"], random_state=seed)
        train, test = (anndata.AnnData(file["X"][part].astype(np.float32)) for part in rows)
        scvi.model.LinearSCVI.setup_anndata(train)
        model = scvi.model.LinearSCVI(train, n_latent=args.latent_dim, gene_likelihood="nb")
        model.train(args.epochs, accelerator="cpu", train_size=1.0, enable_progress_bar=False)
        codes = [model.get_latent_representation(part) for part in (train, test)]
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)).fit(codes[0], file["y"][rows[0]])
        bound = model.get_marginal_ll(test, n_mc_samples=100)
        print(f"seed {seed}  types {probe.score(codes[1], file['y'][rows[1]]):.3f}  bound {bound:.1f} nats", flush=True)


if __name__ == "__main__":
    main()
