"""Train at the defaults on real data of many kinds, and compare with a dense VAE, PCA and NMF.

    python benchmarks/defaults.py --data-root data

Each row of `default_rows.ROWS` states the sizes of data and latents, the likelihood and, where a user would choose it,
the objective; everything else is a default of the library. A row without its data is left out, and the reason printed.
R2 is that of reconstructions of the held-out data as the model sees them, relative to the mean of the training data,
feature by feature. The mean code of a datum is the posterior mean. The hard code is the slab's centre for latents with
gamma > 1/2, and 0 for the others. A latent is used if it is on for at least one datum in a hundred and carries
information: its gamma varies over data by more than .01 (standard deviation), or its KL divergence from the prior is
above .01 nats. Times are processor time of all threads, which other work on the machine hardly affects.

For experiments, import `ROWS` and `run_row`. Overrides of `run_row` are keyword arguments of encoder, decoder, prior
and `fit`, in addition to those of the row.
"""

from __future__ import annotations

import argparse
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, kl_divergence

import vsc_pyro as vsc
from vsc_pyro.distributions import centre, hard_code
from vsc_pyro.distributions.families import inclusion_of

try:
    import measure
    from default_rows import ROWS, Data, Row, num_features, tiny
except ModuleNotFoundError:  # imported as benchmarks.defaults
    from benchmarks import measure
    from benchmarks.default_rows import ROWS, Data, Row, num_features, tiny

__all__ = ["CONTESTANTS", "ROWS", "build", "run_row"]

Kwargs = Mapping[str, Any] | None
_ROWS_AT_ONCE = 500


# Models ---------------------------------------------------------------------------------------------------------------


def build(
    row: Row,
    shape: Sequence[int],
    *,
    dense: bool = False,
    encoder_kwargs: Kwargs = None,
    decoder_kwargs: Kwargs = None,
    prior_kwargs: Kwargs = None,
) -> vsc.VAE:
    """Return the model of a row, with the library's defaults for everything that the arguments do not set.

    Args:
        row: one of `ROWS`.
        shape: shape of one datum.
        dense: take normal codes instead, with the same decoder.
        encoder_kwargs, prior_kwargs: keyword arguments of `SpikeSlabEncoder` and `SpikeSlabPrior`, or both of `VSC`;
            dense codes ignore them.
        decoder_kwargs: keyword arguments of the decoder, for either kind of codes.
    """
    shape, size = tuple(shape), row.latent_dim
    decoder = _decoder(row, shape, dict(decoder_kwargs or {}))
    encoder_kwargs, prior_kwargs = dict(encoder_kwargs or {}), {**row.prior_kwargs, **(prior_kwargs or {})}
    if row.kind == "vsc" and not dense:
        return vsc.VSC(shape, size, decoder=decoder, **encoder_kwargs, **prior_kwargs)
    trunk = {"trunk": vsc.ConvTrunk(shape)} if row.network == "conv" else {}
    if dense:
        return vsc.VAE(vsc.NormalEncoder(shape, size, **trunk), decoder, vsc.NormalPrior(size))
    encoder = vsc.SpikeSlabEncoder(shape, size, **trunk, **encoder_kwargs)
    return vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(size, **prior_kwargs))


def _decoder(row: Row, shape: tuple[int, ...], kwargs: dict[str, Any]) -> nn.Module:
    if row.network == "linear":
        kwargs.setdefault("hidden", ())
    if row.network == "conv":
        kwargs.setdefault("trunk", vsc.DeconvTrunk(shape))
    family = {"normal": vsc.NormalDecoder, "bernoulli": vsc.BernoulliDecoder}[row.likelihood]
    return family(row.latent_dim, shape, **kwargs)


def trained(
    row: Row,
    data: Data,
    seed: int = 0,
    dense: bool = False,
    fit_kwargs: Kwargs = None,
    after_build: Callable[[vsc.VAE, Tensor], object] | None = None,
    fit: Callable[..., object] = vsc.fit,
    **overrides: Kwargs,
) -> tuple[vsc.VAE, float]:
    """Return the trained model of a row, and the processor seconds of training.

    `after_build` may change the untrained model, given the training data; `fit` may replace `vsc_pyro.fit`.
    """
    torch.manual_seed(seed)
    model = build(row, data.train.images.shape[1:], dense=dense, **overrides)
    if after_build is not None:
        after_build(model, data.train.images)
    settings = {"epochs": row.epochs, "seed": seed, "progress": False, **row.fit_kwargs, **(fit_kwargs or {})}
    if dense and settings.get("objective") == "exact":
        settings["objective"] = "analytic"
    start = time.process_time()
    fit(model, data.train, **settings)
    return model, time.process_time() - start


# Measures -------------------------------------------------------------------------------------------------------------


class Baseline:
    """The mean of the training data as a reconstruction of the test data, to compare with."""

    def __init__(self, data: Data, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.train = data.train.draw(slice(None), generator).flatten(1).double()
        self.test_images = data.test.draw(slice(None), generator)
        self.test = self.test_images.flatten(1).double()
        self.mean = self.train.mean(0)

    def r2(self, reconstruction: Tensor) -> float:
        """Return R2 of reconstructions of the test data, relative to the mean of the training data."""
        left = (self.test - reconstruction.flatten(1)).square().sum()
        return float(1 - left / (self.test - self.mean).square().sum())

    def explained(self, reconstruction: Tensor) -> float:
        """Return the share by which probabilities reduce the cross-entropy of binary data under the training mean."""
        left = self._cross_entropy(reconstruction.flatten(1).double())
        return float(1 - left / self._cross_entropy(self.mean.expand_as(self.test)))

    def _cross_entropy(self, probability: Tensor) -> Tensor:
        smallest = 0.5 / len(self.train)
        return nn.functional.binary_cross_entropy(probability.clamp(smallest, 1 - smallest), self.test, reduction="sum")


def codes_of(model: vsc.VAE, images: Tensor) -> dict[str, Tensor]:
    """Return gamma, the mean and hard codes, both decoded, and the KL of each latent if the families factorise."""
    parts: list[dict[str, Tensor]] = []
    with model.evaluating():
        for x in images.split(_ROWS_AT_ONCE):
            x = x.to(model.reference)
            posterior, prior = model.encoder(x), model.prior(x)
            gamma = inclusion_of(posterior)
            mean = centre(posterior)
            hard = hard_code(posterior)
            part = {"gamma": gamma, "mean": mean, "hard": hard}
            part |= {f"decoded_{name}": model.decoder(z).mean for name, z in (("mean", mean), ("hard", hard))}
            if isinstance(posterior, Independent) and isinstance(prior, Independent):
                part["kl"] = kl_divergence(posterior.base_dist, prior.base_dist).expand_as(gamma)
            parts.append({name: value.cpu() for name, value in part.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def used(codes: Mapping[str, Tensor]) -> Tensor:
    """Return True for each latent that is on for 1 % of the data and carries information; shape ``(J,)``."""
    gamma = codes["gamma"]
    informative = gamma.std(0, correction=0) > 0.01
    informative |= codes["kl"].mean(0) > 0.01 if "kl" in codes else codes["mean"].var(0, correction=0) > 0.01
    return informative & ((gamma > 0.5).float().mean(0) >= 0.01)


def measured(model: vsc.VAE, data: Data, baseline: Baseline, is_binary: bool, seed: int) -> dict[str, Any]:
    """Return the reported figures of a trained model."""
    codes = codes_of(model, baseline.test_images)
    gamma, is_used = codes["gamma"], used(codes)
    found = {
        "r2_mean": baseline.r2(codes["decoded_mean"]),
        "r2_hard": baseline.r2(codes["decoded_hard"]),
        "expected_l0": float(gamma.sum(1).mean()),
        "expected_l0_used": float(gamma[:, is_used].sum(1).mean()),
        "hard_l0": float((gamma > 0.5).sum(1).double().mean()),
        "used": int(is_used.sum()),
        "elbo": vsc.evaluate(model, data.test, num_draws=2, seed=seed).elbo,
    }
    if is_binary:
        found |= {f"explained_{name}": baseline.explained(codes[f"decoded_{name}"]) for name in ("mean", "hard")}
    return found


# Contestants ----------------------------------------------------------------------------------------------------------


def _pca(count: int, baseline: Baseline, is_binary: bool) -> dict[str, Any]:
    from sklearn.decomposition import PCA

    train, test = baseline.train.numpy(), baseline.test.numpy()
    start = time.process_time()
    pca = PCA(min(count, *train.shape), random_state=0).fit(train)
    seconds = time.process_time() - start
    decoded = torch.as_tensor(pca.inverse_transform(pca.transform(test)))
    return _of_components(int(pca.n_components_), decoded, baseline, is_binary, seconds)


def _nmf(count: int, baseline: Baseline, is_binary: bool) -> dict[str, Any]:
    from sklearn.decomposition import NMF

    train, test = baseline.train.numpy(), baseline.test.numpy().clip(0)
    start = time.process_time()
    nmf = NMF(min(count, *train.shape), init="nndsvda", max_iter=60, tol=1e-3, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few iterations do not converge
        nmf.fit(train)
        seconds = time.process_time() - start
        decoded = torch.as_tensor(nmf.inverse_transform(nmf.transform(test)))
    return _of_components(int(nmf.n_components_), decoded, baseline, is_binary, seconds)


def _of_components(count: int, decoded: Tensor, baseline: Baseline, is_binary: bool, seconds: float) -> dict[str, Any]:
    found = {"components": count, "r2_mean": baseline.r2(decoded), "cpu_seconds": seconds}
    return found | ({"explained_mean": baseline.explained(decoded)} if is_binary else {})


CONTESTANTS = ("ours", "dense", "pca", "pca-l0", "nmf")


def run_row(
    row: Row | str,
    data: Data | None = None,
    *,
    root: Path | None = None,
    seed: int = 0,
    contestants: Sequence[str] = CONTESTANTS,
    **overrides: Any,
) -> dict[str, dict[str, Any]]:
    """Train and measure the contestants of a row, and return the figures of each by name.

    Args:
        row: a `Row` or its name.
        data: data of the row, if they are already loaded.
        root: folder of the data.
        seed: seed of weights, training and binarisation.
        contestants: some of `CONTESTANTS`; ``"pca-l0"`` is a PCA with as many components as `ours` has latents on.
        overrides: `fit_kwargs`, `encoder_kwargs`, `prior_kwargs`, `after_build` and `fit` for ours, `decoder_kwargs`
            for ours and dense; see `build` and `trained`.

    Raises:
        UnavailableError: no data.
    """
    row = ROWS[row] if isinstance(row, str) else row
    data = row.load(root) if data is None else data
    is_binary = row.likelihood == "bernoulli"
    baseline = Baseline(data, seed)
    found: dict[str, dict[str, Any]] = {}
    for name in contestants:
        if name in ("ours", "dense"):
            found[name] = _of_model(row, data, baseline, seed, name == "dense", overrides)
        elif name == "pca":
            found[name] = _pca(row.latent_dim, baseline, is_binary)
        elif name == "pca-l0" and "ours" in found:
            found[name] = _pca(max(1, round(found["ours"]["hard_l0"])), baseline, is_binary)
        elif name == "nmf" and float(baseline.train.min()) >= 0:
            found[name] = _nmf(row.latent_dim, baseline, is_binary)
    return found


def _of_model(
    row: Row, data: Data, baseline: Baseline, seed: int, dense: bool, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    if dense:
        device = overrides.get("fit_kwargs", {}).get("device", "auto")
        overrides = {"decoder_kwargs": overrides.get("decoder_kwargs"), "fit_kwargs": {"device": device}}
    with _recorded_warnings() as messages:
        model, seconds = trained(row, data, seed, dense, **overrides)
        found = measured(model, data, baseline, row.likelihood == "bernoulli", seed)
    return {**found, "cpu_seconds": seconds, "warnings": sorted(set(messages))}


@contextmanager
def _recorded_warnings() -> Iterator[list[str]]:
    """Record the messages of warnings within this context, in a list that is filled on leaving it."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages += [str(warning.message) for warning in caught]


# The command ----------------------------------------------------------------------------------------------------------

HEAD = ("R2 mean", "hard", "E[L0]", "of used", "hard L0", "used", "ELBO", "explained", "CPU s")
_FORMATS = {
    "r2_mean": ".3f",
    "r2_hard": ".3f",
    "expected_l0": ".2f",
    "expected_l0_used": ".2f",
    "hard_l0": ".2f",
    "used": "d",
    "elbo": ".1f",
    "explained_mean": ".2f",
    "cpu_seconds": ".1f",
}


def cells(name: str, found: Mapping[str, Any], latent_dim: int) -> list[str]:
    """Return the cells of one contestant, in the order of `HEAD`; a figure that it does not have is an empty cell."""
    figures = {field: "" if found.get(field) is None else format(found[field], f) for field, f in _FORMATS.items()}
    if figures["used"]:
        figures["used"] += f"/{latent_dim}"
    return [f"{name} ({found['components']})" if "components" in found else name, *figures.values()]


def _options() -> argparse.ArgumentParser:
    options = measure.parser(__doc__, rounds=None)
    options.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS, metavar="NAME")
    return options


def commit() -> str | None:
    """Return the commit of the checkout, marked if files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        head, changes = [
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no", ".."])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + (", with changes" if changes else "")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = _options().parse_args(argv)
    session = measure.Session("defaults", args)
    session.record["environment"]["commit"] = commit()
    session.record["data"] = {}
    for name in args.rows:
        row = ROWS[name]
        for data in session.available({name: lambda row=row: row.load(args.data_root)}).values():
            if args.quick:
                row, data = tiny(row, data)
            session.record["data"][name] = data.source
            for seed in args.seeds:
                fit_kwargs = {"device": str(session.device)}
                found = run_row(row, data, seed=seed, contestants=args.contestants, fit_kwargs=fit_kwargs)
                _report(session, row, data, seed, found)
    return session.finish()


def _report(session: measure.Session, row: Row, data: Data, seed: int, found: dict[str, dict[str, Any]]) -> None:
    sizes = f"{len(data.train)} x {num_features(data)}, J = {row.latent_dim}, {row.epochs} epochs, seed {seed}"
    measure.table(
        f"{row.name}: {data.source}; {sizes}", ["", *HEAD], [cells(k, v, row.latent_dim) for k, v in found.items()]
    )
    for name, values in found.items():
        for warning in values.get("warnings", ()):
            print(f"  {name} warned: {warning}")
    about = {"title": row.name, "seed": seed, "num_train": len(data.train), "num_test": len(data.test)}
    about |= {"num_features": num_features(data), "latent_dim": row.latent_dim, "epochs": row.epochs}
    session.record["results"].append({**about, "held_out": data.held_out, "found": found})
    session.write()


if __name__ == "__main__":
    main()
