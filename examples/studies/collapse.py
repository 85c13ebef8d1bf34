"""Unused latents under learned priors: when they are lost, and which remedies keep them.

    python examples/studies/collapse.py --data-root FOLDER --jobs 2

trains models with a learned inclusion or pseudo-inputs on MNIST (50 latents) and Fashion-MNIST (200 latents), once by
default and once with each remedy: KL warm-up (Bowman et al., 2016), free bits (Kingma et al., 2016), a higher inclusion
at the start, a hyperprior on the inclusion, VSC's aggregate sparsity term (Tonolini et al., 2020), learned slabs, a
prior that learns slowly or late, and an unbiased or annealed gate.

A latent is on if its inclusion probability exceeds 1/2 for some datum. The latents that are on for held-out training
data are recorded after each epoch, which tells those that have never been on from those that were lost.
"""

import functools
from math import ceil

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pyro.distributions.util import scale_and_mask
from study import Study, fitted, main, markdown, read_json, run_main, write_json
from torch.distributions import kl_divergence

import vsc_pyro as vsc
from vsc_pyro.distributions import AssignedMixture, inclusion_of
from vsc_pyro.distributions.pairwise import insert_batch_dims
from vsc_pyro.objectives.elbo import Term

# The options of a run that differ from those of "nothing"; see `build` and `phases`.
REMEDIES = {
    "nothing": {},
    "warm-up .2": {"warmup": 0.2},
    "warm-up .5": {"warmup": 0.5},
    "free bits .05": {"floor": 0.05},
    "encoder starts at .5": {"initial_inclusion": 0.5},
    "encoder starts at .9": {"initial_inclusion": 0.9},
    "both start at .3": {"inclusion": 0.3},
    "hyperprior": {"hyperprior": [2e3, 8e3]},  # counts like 10,000 data with a latent on for a fifth of them
    "learned slabs": {"learn_slab": True},
    "sparsity term": {"target": 0.25},
    "slow prior": {"prior_lr": 0.1},
    "late prior": {"prior_from": 0.5},
    "late disarm": {"disarm_from": 0.8},
    "annealed gate": {"temperature": [1.0, 0.3]},
    "warm-up .5, learned slabs": {"warmup": 0.5, "learn_slab": True},
    "warm-up .2, sparsity term": {"warmup": 0.2, "target": 0.25},
}
OF_PSEUDO_INPUTS = ("sparsity term", "warm-up .2, sparsity term")
TRIED = {  # remedies by data set and prior
    ("mnist", "learned"): [name for name in REMEDIES if name not in OF_PSEUDO_INPUTS],
    ("mnist", "pseudo-input"): [
        *("nothing", "warm-up .2", "warm-up .5", "free bits .05", "encoder starts at .5", "slow prior", "late disarm"),
        *OF_PSEUDO_INPUTS,
    ],
    ("fashion-mnist", "learned"): [
        *("nothing", "warm-up .5", "encoder starts at .5", "learned slabs", "warm-up .5, learned slabs"),
    ],
    ("fashion-mnist", "pseudo-input"): ["nothing", "warm-up .2", "encoder starts at .5", *OF_PSEUDO_INPUTS],
}
QUICK = {
    ("digits", "learned"): [
        *("nothing", "free bits .05", "both start at .3", "hyperprior", "slow prior", "late prior", "late disarm"),
        *("annealed gate", "warm-up .5, learned slabs"),
    ],
    ("digits", "pseudo-input"): ["nothing", "free bits .05", "warm-up .2, sparsity term"],
}
NAMES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "digits": "small digits"}
FIGURES = ("elbo", "iwae", "kl", "expected_l0", "used_latents", "active_units", "informative_latents", "hoyer")


def runs(quick):
    common = {"hidden": 400, "batch_size": 200, "epochs": 25, "lr": 1e-3, "held_out": 10_000, "draws": 100, "seed": 0}
    if quick:
        common |= {"hidden": 20, "batch_size": 100, "epochs": 4, "lr": 1e-2, "held_out": 200, "draws": 2}
    latents = {"digits": 8, "mnist": 50, "fashion-mnist": 200}
    return {
        f"{dataset}-{prior}-{remedy}".replace(",", "").replace(" ", "-"): {
            "dataset": dataset,
            "prior": prior,
            "remedy": remedy,
            "latent_dim": latents[dataset],
            **common,
            **REMEDIES[remedy],
        }
        for (dataset, prior), remedies in (QUICK if quick else TRIED).items()
        for remedy in remedies
    }


class FreeBitsELBO(vsc.AnalyticELBO):
    """`AnalyticELBO` in which the KL of a latent, averaged over the minibatch, counts at least `floor` nats."""

    def __init__(self, floor):
        super().__init__(max_plate_nesting=1)
        self.floor = floor

    def describe(self):
        return f"floor={self.floor}"

    def _latent_term(self, model_trace, name, guide_sites):
        term = super()._latent_term(model_trace, name, guide_sites)
        site, prior = guide_sites[name], model_trace.nodes[name]["fn"]
        charge = kl_of_latents(site["fn"], prior).mean(0).clamp(min=self.floor).sum()
        if isinstance(prior, AssignedMixture):
            charge = charge + prior.assignment_kl()
        charge = scale_and_mask(charge.expand(site["fn"].batch_shape), site["scale"], site["mask"])
        return Term(term.value, -charge, exact_kl=True)  # the history still holds the bound


def kl_of_latents(posterior, prior):
    """Return the KL of each latent, shape ``(B, J)``; for a mixture, its mean over the datum's assignment."""
    if not isinstance(prior, AssignedMixture):
        return kl_divergence(posterior.base_dist, prior.base_dist)
    components = insert_batch_dims(prior.component_distribution.base_dist, 1, 1)  # (U, 1, J)
    each = kl_divergence(
        posterior.base_dist.expand((len(prior.log_weights), *posterior.base_dist.batch_shape)), components
    )
    return (prior.log_assignment.exp().mT.unsqueeze(-1) * each).sum(0)


def build(settings, shape):
    """Return an untrained model."""
    torch.manual_seed(settings["seed"])
    latent_dim, hidden = settings["latent_dim"], settings["hidden"]
    encoder = vsc.SpikeSlabEncoder(shape, latent_dim, hidden, initial_inclusion=settings.get("initial_inclusion"))
    if settings["prior"] == "pseudo-input":
        target = settings.get("target")
        prior = vsc.PseudoInputPrior(encoder, inclusion=target, sparsity_weight=0.0 if target is None else 1.0)
    else:
        prior = vsc.SpikeSlabPrior(
            latent_dim,
            settings.get("inclusion"),
            learn_inclusion="per-latent",
            hyperprior=settings.get("hyperprior"),
            learn_slab=settings.get("learn_slab", False),
        )
    return vsc.VAE(encoder, vsc.BernoulliDecoder(latent_dim, shape, hidden), prior)


def phases(settings, model, num_data):
    """Return the options of each call of `fit`, and whether the prior learns in it."""
    epochs, lr = settings["epochs"], settings["lr"]
    whole = {"epochs": epochs, "lr": lr, "batch_size": settings["batch_size"], "progress": False}
    if "warmup" in settings:
        whole["warmup"] = settings["warmup"]
    if "floor" in settings:
        whole["objective"] = FreeBitsELBO(settings["floor"])
    if "prior_lr" in settings:
        whole |= {"lr": None, "optimizer": functools.partial(slow_prior, model, lr, settings["prior_lr"])}
    if "temperature" in settings:
        steps = epochs * ceil(num_data / settings["batch_size"])
        whole["schedules"] = {"encoder.gate.temperature": vsc.Ramp(*settings["temperature"], length=steps)}
    share = settings.get("prior_from", settings.get("disarm_from"))
    if share is None:
        return [(whole, True)]
    first = round(share * epochs)
    begun, rest = whole | {"epochs": first, "cooldown": 0}, whole | {"epochs": epochs - first}
    if "prior_from" in settings:
        return [(begun, False), (rest | {"cooldown": 0.5}, True)]
    return [(begun, True), (rest | {"gate": "disarm", "objective": "trace", "cooldown": 1.0}, True)]


def slow_prior(model, lr, factor, parameters):
    """Return Adam with a lower rate for the parameters that the prior does not share with the encoder."""
    shared = set(map(id, model.encoder.parameters()))
    slow = {id(parameter) for parameter in model.prior.parameters()} - shared
    groups = [[p for p in parameters if (id(p) in slow) == is_slow] for is_slow in (False, True)]
    return torch.optim.Adam([{"params": groups[0]}, {"params": groups[1], "lr": factor * lr}], lr=lr, fused=True)


def trained(settings, folder, train, held):
    """Return a model, the bound of `held` after training, and the latents on after each epoch, by epoch."""
    model = build(settings, tuple(train.images.shape[1:]))
    file = folder / "on.json"  # a resumed run calls no callback for the epochs before
    on, done = (read_json(file) if file.exists() else {}), 0

    def note(history, model):
        on[str(done + len(history))] = latents_on(model, held)
        write_json(file, on)

    for phase, (options, learns_prior) in enumerate(phases(settings, model, len(train))):
        if settings["prior"] == "learned":
            model.prior.inclusion_logits.requires_grad_(learns_prior)
        history = fitted(
            model,
            train,
            folder / f"phase-{phase}",
            validation=held,
            callbacks=[note],
            checkpoint_every=5,
            seed=settings["seed"] + phase,
            **options,
        )
        done += len(history)
    return model, history.validation[-1], {int(epoch): latents for epoch, latents in on.items()}


def latents_on(model, data):
    """Return the indices of the latents whose inclusion exceeds 1/2 for some datum."""
    return (inclusion_of(model.encoder(data.draw(slice(None)))) > 0.5).any(0).nonzero().flatten().tolist()


def measure(settings, folder, data_root):
    folder.mkdir(parents=True, exist_ok=True)
    train, test = vsc.datasets.load(settings["dataset"], data_root, binarize="dynamic")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings["seed"]))
    held, train = train[order[: settings["held_out"]]], train[order[settings["held_out"] :]]
    model, validation, on = trained(settings, folder, train, held)
    found = vsc.evaluate(model, test, num_draws=settings["draws"], seed=settings["seed"]).as_dict()
    off = set(range(settings["latent_dim"])) - set(on[max(on)])
    tenth = min(epoch for epoch in on if epoch >= settings["epochs"] / 10)
    return {name: found[name] for name in FIGURES} | {
        "validation": validation,
        "used_by_epoch": {str(epoch): len(latents) for epoch, latents in sorted(on.items())},
        "off": len(off),
        "off_at_a_tenth": len(off - set(on[tenth])),
        "never_on": len(off.difference(*on.values())),
    }


def minutes(settings):
    return {"digits": 0.01, "mnist": 1.4, "fashion-mnist": 2.2}[settings["dataset"]]


def grouped(results):
    """Return the results by data set and prior, and in each by remedy."""
    groups = {}
    for result in results.values():
        settings = result["settings"]
        groups.setdefault((settings["dataset"], settings["prior"]), {})[settings["remedy"]] = result
    return groups


def table(results):
    parts = []
    for (dataset, prior), found in grouped(results).items():
        figures = {remedy: result["figures"] for remedy, result in found.items()}
        best = max(figures, key=lambda remedy: figures[remedy]["validation"])
        rows = [row(remedy, each, figures.get("nothing"), remedy == best) for remedy, each in figures.items()]
        latents = next(iter(found.values()))["settings"]["latent_dim"]
        parts.append(f"**{NAMES[dataset]}, {prior}, {latents} latents**\n\n{markdown(rows)}")
    settings = next(iter(results.values()))["settings"]
    hidden = settings["hidden"]
    parts.append(
        "-ELBO in nats per image, lower is better, and in parentheses the change against 'nothing'. Validation: "
        f"{settings['held_out']:,} images held out of the training data; the best by it is bold, and nothing was "
        f"chosen on test images. Bound: {settings['draws']} draws. Hard spikes throughout, dynamic binarisation; "
        f"networks D-{hidden}-J-{hidden}-D, Adam {settings['lr']:g} that falls over the last quarter (late disarm: "
        f"the last fifth), batches of {settings['batch_size']}, {settings['epochs']} epochs, concrete gate. Ever on: "
        "latents whose inclusion exceeds 1/2 for some test image, whether they tell images apart (informative, see "
        "the glossary) or not. Off at the end: latents on for no held-out image; of these, those that were "
        "already off after a tenth of the epochs, and those that were on after no epoch. E[L0] sums the inclusion "
        "of all latents, unused ones at their idle rate. One seed."
    )
    parts.append(
        "Remedies. Warm-up: the weight of the divergence rises from 0 over that share of the run. Free bits: a "
        "latent's divergence, averaged over the minibatch, counts at least .05 nats. Both start at .3: prior and "
        "encoder; the others start at .1. Hyperprior: Beta(2,000, 8,000) on the inclusion of each latent. Slow "
        "prior: a tenth of the rate for the parameters of the prior. Late prior: they are held for half of the "
        "run. Late disarm: that gate and a sampled divergence in the last fifth. Annealed gate: temperature from 1 "
        "to .3. Sparsity term: target .25, weight 1 for each datum, where VSC has 1/N."
    )
    return "\n\n".join(parts)


def row(remedy, figures, plain, is_best):
    def cell(name, sign=1, digits=2):
        value = f"{sign * figures[name]:.{digits}f}"
        if plain is None or plain is figures:
            return value
        return f"{value} ({sign * (figures[name] - plain[name]):+.{digits}f})"

    return {
        "remedy": remedy,
        "validation": f"**{cell('validation', -1)}**" if is_best else cell("validation", -1),
        "test": cell("elbo", -1),
        "bound": cell("iwae", -1),
        "E[L0]": cell("expected_l0", digits=1),
        "ever on": cell("used_latents", digits=0),
        "active": figures["active_units"],
        "informative": figures["informative_latents"],
        "Hoyer": f"{figures['hoyer']:.2f}",
        "off at the end: by a tenth, never on": f"{figures['off']}: {figures['off_at_a_tenth']}, {figures['never_on']}",
    }


def draw(results):
    groups = grouped(results)
    datasets, priors = (list(dict.fromkeys(names)) for names in zip(*groups, strict=True))
    figure = Figure(figsize=(13, 5.5 * len(datasets)), layout="constrained")
    grid = figure.subplots(len(datasets), len(priors), squeeze=False)
    lines = {}
    for (dataset, prior), found in groups.items():
        axes = grid[datasets.index(dataset)][priors.index(prior)]
        for remedy, result in found.items():
            place = list(REMEDIES).index(remedy)
            epochs, used = zip(*((int(k), v) for k, v in result["figures"]["used_by_epoch"].items()), strict=True)
            style = {"color": f"C{place}", "ls": "-" if place < 10 else "--"} if place else {"color": "black", "lw": 3}
            (lines[remedy],) = axes.plot(epochs, used, label=remedy, **style)
        latents = next(iter(found.values()))["settings"]["latent_dim"]
        axes.set(
            title=f"{NAMES[dataset]}, {prior}",
            xlabel="epoch",
            ylabel=f"latents on for at least one held-out image, of {latents}",
        )
        axes.get_yaxis().set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    names = [remedy for remedy in REMEDIES if remedy in lines]
    figure.legend([lines[name] for name in names], names, loc="outside right upper", fontsize=9)
    return figure


STUDY = Study(__file__, __doc__, runs, measure, minutes, table, draw)


if __name__ == "__main__":
    run_main(lambda: main(STUDY))
