"""Sparse factors of cells from raw counts: types of cells, genes of a factor, and the factors that a cell uses.

    python examples/counts.py --data cells.npz

The file holds arrays X (raw counts of cells by genes), y (types, names or numbers), genes (names) and perhaps labels
(names of numbered types). Without --data, cells are simulated from six sparse factors. The script prints, on a held-out
quarter of the cells, the accuracy with which a logistic regression on the codes finds the type, and the bound on the
log-probability of a cell, beside those of a dense VAE and of non-negative matrix factorisation; then the genes of the
most used factors. It writes two figures.
"""

import numpy as np
import torch
from common.files import write_figure
from common.options import add_output, described, path, whole
from common.outputs import refuse_to_replace
from common.running import run
from sklearn.decomposition import NMF
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import vsc_pyro as vsc
from vsc_pyro import plots
from vsc_pyro.distributions import contrast

FIGURES = "loadings.png", "inclusion.png"


def simulated(seed, num_cells=800, num_genes=200, num_factors=6):
    """Cells of six types, each of which uses two of six factors, of depths from 100 to 1,000 counts."""
    random = np.random.default_rng(seed)
    types = random.integers(num_factors, size=num_cells)
    on = np.eye(num_factors)[types] + np.eye(num_factors)[(types + 1) % num_factors]
    changes = random.normal(1, 0.2, (num_factors, num_genes)) * (random.random((num_factors, num_genes)) < 0.1)
    share = random.dirichlet(np.ones(num_genes)) * np.exp(on * random.gamma(8, 1 / 8, on.shape) @ changes)
    counts = random.poisson(10 ** random.uniform(2, 3, (num_cells, 1)) * share)
    return vsc.Dataset(counts, [f"type {number}" for number in types]), [f"gene {gene}" for gene in range(num_genes)]


def read(path):
    file = np.load(path)
    return vsc.Dataset(file["X"], file["y"], class_names=file.get("labels")), file["genes"].tolist()


def fitted(encoder, decoder, prior, train, args):
    torch.manual_seed(args.seed)
    num_genes, latents = train.shape[1], args.latent_dim
    encoder = encoder(num_genes, latents, trunk=vsc.CountTrunk(num_genes))
    model = vsc.VAE(encoder, decoder(latents, num_genes, hidden=()), prior(latents))
    vsc.fit(
        model, train, epochs=args.epochs, batch_size=50, seed=args.seed, device=args.device, progress=not args.quiet
    )
    return model


def nmf_accuracy(train, test, args):
    logs = [np.log1p(1e4 * (x / x.sum(1, keepdim=True)).numpy()) for x in (train.images, test.images)]
    factors = NMF(args.latent_dim, max_iter=5000, random_state=args.seed).fit(logs[0])
    codes = [factors.transform(x) for x in logs]
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)).fit(codes[0], train.labels)
    return probe.score(codes[1], test.labels)


def main(argv=None):
    parser = described(__doc__)
    parser.add_argument("--data", type=path, help="an .npz of X, y and genes; default: simulated cells")
    parser.add_argument("--latent-dim", type=whole, default=20)
    parser.add_argument("--epochs", type=whole, default=200)
    add_output(parser, "runs/counts")
    args = parser.parse_args(argv)
    refuse_to_replace(args, *FIGURES)
    cells, genes = simulated(args.seed) if args.data is None else read(args.data)
    train, test = train_test_split(cells, test_size=0.25, stratify=cells.labels, random_state=args.seed)

    parts = vsc.SpikeSlabEncoder, vsc.NegativeBinomialDecoder, vsc.SpikeSlabPrior
    sparse = fitted(*parts, train, args)
    dense = fitted(vsc.NormalEncoder, vsc.NegativeBinomialDecoder, vsc.NormalPrior, train, args)
    for name, model in {"sparse": sparse, "dense": dense}.items():
        accuracy = vsc.linear_probe(model, train, test, num_labels=len(train))
        result = vsc.evaluate(model, test, seed=args.seed)
        used = f"{result.used_per_datum:.1f} of {args.latent_dim} factors a cell"
        print(f"{name:6}  types {accuracy:.3f}  bound {result.iwae:.1f} nats  {used}")
    print(f"NMF     types {nmf_accuracy(train, test, args):.3f}")

    codes, changes = vsc.codes(sparse, test), sparse.decoder.dictionary.detach()
    inclusion, sign = codes.inclusion, (codes.inclusion * codes.centre).sum(0).sign()  # of a latent is arbitrary
    effects = contrast(sparse.decoder(torch.diag(sign)), sparse.decoder(torch.zeros(args.latent_dim))).values.detach()
    for factor in inclusion.mean(0).argsort(descending=True)[:5].tolist():
        strongest = effects[factor].abs().argsort(descending=True)[:8].tolist()  # beside the noise of a count
        listed = ", ".join(f"{genes[gene]} {sign[factor] * changes[factor, gene]:+.1f}" for gene in strongest)
        print(f"factor {factor}, in {inclusion[:, factor].mean():.0%} of cells: {listed}")
    write_figure(args.output / FIGURES[0], plots.loadings(sparse, names=genes, data=test), 150)
    write_figure(args.output / FIGURES[1], plots.inclusion_map(sparse, test), 150)


if __name__ == "__main__":
    run(main)
