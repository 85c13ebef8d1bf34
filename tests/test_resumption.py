"""Resuming from files that have been damaged, edited, or made to do harm; and by runs with other schedules."""

import copy
import functools
import math
import pickle
import random
import re
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR, OneCycleLR, SequentialLR, StepLR

import vsc_pyro as vsc

X = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
LEARNT = "decoder.network.0.weight"


def tiny(seed=0, beta=1.0):
    torch.manual_seed(seed)
    encoder = vsc.SpikeSlabEncoder(6, 2, hidden=(3,))
    return vsc.VAE(encoder, vsc.NormalDecoder(2, 6, hidden=(3,)), vsc.SpikeSlabPrior(2, 0.3), beta=beta)


def fit(model, path, epochs, resume=True, **settings):
    settings = {"batch_size": 20, "schedules": {"beta": vsc.Ramp(0.5, 2, length=4)}, "device": "cpu"} | settings
    return vsc.fit(model, X, epochs=epochs, checkpoint=path, resume=resume, progress=False, **settings)


def drop(optimizer):
    return StepLR(optimizer, 2)


def everything(model):
    """All that a refusal has to leave as it was."""
    settings = float(model.beta), model.encoder.gate, model.num_data, model.training
    return {name: value.clone() for name, value in model.state_dict().items()}, settings, torch.get_rng_state()


def attempt(model, path, epochs=3, **settings):
    """The history of a run that goes on; or why it is refused, in one short line, and then nothing has changed."""
    weights, others, random_state = everything(model)
    try:
        return fit(model, path, epochs, **settings)
    except ValueError as refusal:
        message = str(refusal)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 500 + len(str(path)), message
    after, others_after, random_after = everything(model)
    assert all(torch.equal(value, weights[name]) for name, value in after.items())
    assert others_after == others
    assert torch.equal(random_after, random_state)
    return message


def assert_refused(model, path, epochs=3, match="", **settings):
    message = attempt(model, path, epochs, **settings)
    assert isinstance(message, str), "it has not been refused"
    assert re.search(match, message)


@pytest.fixture
def finished(tmp_path):
    """The state of a run of two epochs, with a step schedule of the learning rate; and a file for altered ones."""
    fit(tiny(), tmp_path / "whole.pt", 2, lr_schedule=drop)
    return vsc.load_checkpoint(tmp_path / "whole.pt"), tmp_path / "altered.pt"


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def repeated(depth):
    """Small in a file, and of 2**depth entries to whoever looks at all."""
    value = ["x"]
    for _ in range(depth):
        value = [value, value]
    return value


# By where, what stands there instead and what the refusal says. None: any value, of a place that must not be missing.
CRAFTED = [
    (("optimizer", "state", 0, "exp_avg"), torch.zeros(1), "contiguous tensor of torch.float32 and shape"),
    (("optimizer", "state", 0, "exp_avg"), torch.zeros(()).expand(3, 6), "contiguous"),
    (("optimizer", "state", 0, "exp_avg"), torch.zeros(6, 3).T, "contiguous"),
    (("optimizer", "state", 0, "exp_avg"), torch.zeros(3, 6).double(), "torch.float32"),
    (("optimizer", "state", 0, "exp_avg"), torch.zeros(3, 6, dtype=torch.complex64), "torch.float32"),
    (("optimizer", "state", 0, "exp_avg"), torch.full((3, 6), torch.nan), "finite"),
    (("optimizer", "state", 0, "exp_avg_sq"), torch.full((3, 6), -1.0), "exp_avg_sq not negative"),
    (("optimizer", "state", 0, "step"), torch.tensor(torch.inf), "step finite"),
    (("optimizer", "state", 0, "step"), torch.tensor([1.0, 1.0]), r"shape \(\)"),
    (("optimizer", "state", 0, "step"), torch.tensor(-1.0), "at least 1"),
    (("optimizer", "state", 0, "step"), 3, "step"),
    (("optimizer", "state", 0), {}, "must have step"),
    (("optimizer", "state", 99), {}, "an entry for each"),
    (("optimizer", "state"), {}, "an entry for each"),
    (("optimizer", "param_groups", 0, "params"), [1, 0, 2, 3, 4, 5, 6, 7], "params="),
    (("optimizer", "param_groups", 0, "lr"), torch.nan, "lr=nan"),
    (("optimizer", "param_groups", 0, "lr"), 0.5, "lr=0.5"),
    (("optimizer", "param_groups", 0, "betas"), 3, "betas=3"),
    (("optimizer", "param_groups", 0, "surprise"), 1, "known keys, got 'surprise'"),
    (("optimizer", "param_groups"), [], "one group"),
    (("model", LEARNT), torch.full((3, 2), torch.nan), "not finite"),
    (("model", LEARNT), torch.ones(3, 2, dtype=torch.complex64), "complex64"),
    (("model", LEARNT), torch.zeros(()).expand(10**9, 10**9), "another architecture"),
    (("model", LEARNT), "x", "is str there"),
    (("model", 3), torch.ones(1), "tensors by name"),
    (("model",), 5, "tensors by name"),
    (("epoch",), 1, "must be 1 finite numbers"),
    (("epoch",), True, "epoch must be of type int"),
    (("epoch",), 0, "at least 1"),
    (("epoch",), 10**600, "more than epochs=3"),
    (("history", "elbo"), [torch.nan, 1.0], "2 finite numbers"),
    (("history", "surprise"), 1, "history must have"),
    (("history", "compiled"), "x", "a bool"),
    (("schedule", "last_epoch"), 7, "last_epoch=7"),
    (("schedule", "step_size"), [repeated(60)], "step_size"),
    (("schedule",), 5, "schedule must be of type dict"),
    (("planned",), repeated(60), "planned must have"),
    (("planned", "lr_schedule"), torch.zeros((), dtype=torch.float64).expand(10**15, 1), "was 0 in epoch 1"),
    (("settings", "lr"), repeated(60), "lr="),
    (("settings", "model"), "a\n" * 100_000 + "b", "model="),
    (("settings", "trained"), nested(100), "trained="),
    (("settings",), {}, r"objective=None .* and \d more; resume"),
    (("settings",), [], "settings must be of type dict"),
    (("rng", "cpu"), torch.zeros(5056, dtype=torch.uint8), "state of a generator"),
    (("rng", "cpu"), torch.zeros(7, dtype=torch.uint8), "must be 5056 bytes"),
    (("rng", "data"), None, "must be 5056 bytes"),
    (("rng", "cuda"), torch.zeros(16, dtype=torch.uint8), "None on another device"),
    (("rng", "device"), "a" * 10_000, "kind of device"),
    (("rng",), {}, "rng must have"),
    (("idle",), [LEARNT], "an entry for each"),
    (("format",), True, "not a vsc_pyro checkpoint"),
]


def altered(state, place, value):
    state = copy.copy(state)
    *outer, last = place
    inner = state
    for key in outer:
        inner[key] = copy.copy(inner[key])
        inner = inner[key]
    inner[last] = value
    return state


@pytest.mark.slow
def test_crafted_checkpoints_are_refused_in_one_line_and_change_nothing(finished):
    state, path = finished
    model = tiny(seed=1, beta=1.5)
    for place, value, message in CRAFTED:
        torch.save(altered(state, place, value), path)
        assert_refused(model, path, match=message, lr_schedule=drop)
    for missing in ("optimizer", "schedule", "epoch", "history", "settings", "rng", "model"):
        torch.save({name: value for name, value in state.items() if name != missing}, path)
        assert_refused(model, path, match=missing, lr_schedule=drop)


ASSIGN = {name: {"assign_to_params_buffers": True} for name, _ in tiny().named_modules()}


@pytest.mark.parametrize("metadata", [ASSIGN, {}, 5, "x", None])
def test_what_is_written_beside_the_tensors_is_not_obeyed(finished, metadata):
    state, path = finished
    expected = tiny(seed=1)
    history = fit(expected, path.with_name("whole.pt"), 3, lr_schedule=drop)
    state["model"] = OrderedDict(state["model"])
    state["model"]._metadata = metadata
    torch.save(state, path)
    loaded = tiny(seed=1)
    before = loaded.reference
    vsc.load_weights(loaded, vsc.load_checkpoint(path), path)
    assert loaded.reference is before
    model = tiny(seed=1)
    assert fit(model, path, 3, lr_schedule=drop).elbo == history.elbo
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in expected.state_dict().items())


def places(value, place=()):
    """Where anything is in a state, however deep."""
    yield place
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from places(entry, (*place, key))


@pytest.mark.slow
def test_random_alterations_are_refused_or_train(finished):
    state, path = finished
    random.seed(0)
    everywhere = [place for place in places(state) if place and place[0] != "format"]
    values = [None, 0, -1, 1e308, -torch.inf, "x", [], {}, [[1]], {"x": torch.ones(2)}, b"x", 10**400, True]
    values += [torch.tensor(2.5), torch.full((3,), torch.nan), torch.ones(3, 6), torch.ones(2, 2, dtype=torch.int64)]
    accepted = 0
    for _ in range(60):
        place, value = random.choice(everywhere), random.choice(values)
        torch.save(altered(state, place, value), path)
        model = tiny(seed=1)
        outcome = attempt(model, path, lr_schedule=drop)
        if not isinstance(outcome, str):
            accepted += 1
            assert len(outcome) == 3
            assert all(map(math.isfinite, outcome.elbo))
    assert accepted < 15  # numbers that nothing can be held against, such as seconds


def test_moments_that_share_their_memory_are_taken_apart(finished):
    state, path = finished
    moments = state["optimizer"]["state"][0]
    torch.save(altered(state, ("optimizer", "state", 0, "exp_avg"), moments["exp_avg_sq"]), path)
    apart, shared = tiny(), tiny()
    fit(shared, path, 3, lr_schedule=drop)
    copied = altered(state, ("optimizer", "state", 0, "exp_avg"), moments["exp_avg_sq"].clone())
    torch.save(copied, path)
    fit(apart, path, 3, lr_schedule=drop)
    assert all(
        torch.equal(a, b) for a, b in zip(apart.state_dict().values(), shared.state_dict().values(), strict=True)
    )


def test_a_parameter_without_gradients_is_resumed_too(tmp_path):
    models = [tiny() for _ in range(3)]
    for model in models:
        model.decoder.idle = torch.nn.Parameter(torch.zeros(2))
    whole = fit(models[0], tmp_path / "a.pt", 4)
    fit(models[1], tmp_path / "b.pt", 2)
    assert fit(models[2], tmp_path / "b.pt", 4).elbo == whole.elbo
    state = vsc.load_checkpoint(tmp_path / "b.pt")  # fit(models[2]) has gone on with it
    del state["planned"], state["idle"], state["settings"]["lr_schedule"]
    torch.save(state, tmp_path / "earlier.pt")
    resumed = tiny(seed=1)
    resumed.decoder.idle = torch.nn.Parameter(torch.zeros(2))
    assert len(fit(resumed, tmp_path / "earlier.pt", 5)) == 5


def test_checkpoints_of_before_schedules_were_planned_are_resumed(finished, tmp_path):
    state, path = finished
    del state["planned"], state["idle"], state["settings"]["lr_schedule"]
    torch.save(state, path)
    whole = fit(tiny(), tmp_path / "other.pt", 4, lr_schedule=drop)
    assert fit(tiny(seed=1), path, 4, lr_schedule=drop).elbo == whole.elbo
    torch.save(state, path)
    assert_refused(tiny(), path, lr_schedule=lambda o: StepLR(o, 3), match="step_size=2")
    assert_refused(tiny(), path, lr_schedule=lambda o: CosineAnnealingLR(o, 8), match="T_max=None")


# Files that cost more than their size


def rewritten(source, target, compression=zipfile.ZIP_STORED, replaced=()):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, dict(replaced).get(name.rpartition("/")[2]) or old.read(name))


@pytest.mark.slow
def test_small_files_that_would_cost_a_lot_are_refused(finished, tmp_path):
    state, path = finished
    bomb = tmp_path / "bomb.pt"
    torch.save(altered(state, ("model", LEARNT), torch.zeros(2**20)), bomb)
    rewritten(bomb, path, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    assert_refused(tiny(), path, match="members that unpack to more than the file")
    torch.save(altered(state, ("history", "elbo"), [0.0] * 10**6), path)
    assert_refused(tiny(), path, match="bytes of structure beside the tensors, more than 8388608")
    # A dictionary with the right format and lists in lists for settings, deeper than pickle itself would write.
    deep = b"]" * 10**5 + b"a" * (10**5 - 1)
    pickled = b"\x80\x02}(X\x06\x00\x00\x00formatK\x01X\x08\x00\x00\x00settings" + deep + b"u."
    rewritten(bomb, path, replaced={"data.pkl": pickled})
    assert_refused(tiny(), path, match="holds no weights")
    path.write_bytes(pickle.dumps(repeated(60)))
    assert_refused(tiny(), path, match="could run code")
    path.write_bytes(pickle.dumps(0) + bomb.read_bytes())  # an archive to zipfile, a bare pickle to torch
    assert_refused(tiny(), path, match="could run code")


# Schedules


def half_later(epoch):
    return 0.5 if epoch >= 3 else 1.0


def anew(optimizer):
    """A schedule of two schedules, the second of a class of its own."""
    return SequentialLR(optimizer, [LambdaLR(optimizer, half_later), CosineAnnealingLR(optimizer, 3)], [2])


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (drop, lambda o: CosineAnnealingLR(o, 8), r"lr_schedule=StepLR \(now CosineAnnealingLR\)"),
        (drop, lambda o: StepLR(o, 3), r"step_size=2 after as many epochs \(now 3\)"),
        (drop, lambda o: StepLR(o, 2, gamma=0.2), r"gamma=0\.1"),
        (lambda o: MultiStepLR(o, [2]), lambda o: MultiStepLR(o, [2, 6]), r"milestones=\{2: 1\}"),
        (lambda o: CosineAnnealingLR(o, 4), lambda o: CosineAnnealingLR(o, 8), "T_max=4"),
        (lambda o: LambdaLR(o, half_later), lambda o: LambdaLR(o, lambda e: 0.9**e), "was 0.001 in epoch 2"),
        (
            lambda o: LambdaLR(o, half_later),
            lambda o: LambdaLR(o, lambda e: 1.0),
            r"in epoch 4 .*, and not",
        ),
        (anew, lambda o: SequentialLR(o, [StepLR(o, 2), CosineAnnealingLR(o, 3)], [2]), "_schedulers="),
    ],
)
def test_another_lr_schedule_is_refused(tmp_path, first, second, message):
    fit(tiny(), tmp_path / "c.pt", 4, lr_schedule=first)
    assert_refused(tiny(seed=1), tmp_path / "c.pt", 8, match=message, lr_schedule=second)


@pytest.mark.parametrize(
    "lr_schedule",
    [
        drop,
        anew,
        lambda o: MultiStepLR(o, [1, 3], gamma=0.3),
        lambda o: OneCycleLR(o, 1e-2, total_steps=6),  # which moves Adam's betas as well
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
        lambda o: lr_scheduler.ChainedScheduler([StepLR(o, 2), lr_scheduler.ExponentialLR(o, 0.9)]),
        lambda o: LambdaLR(o, lambda epoch: np.cos(epoch / 9)),  # a number of NumPy's
    ],
)
def test_a_run_of_the_same_lr_schedule_goes_on_exactly(tmp_path, lr_schedule):
    whole = tiny()
    history = fit(whole, tmp_path / "a.pt", 6, lr_schedule=lr_schedule)
    fit(tiny(), tmp_path / "b.pt", 3, lr_schedule=lr_schedule)
    model = tiny(seed=1)
    assert fit(model, tmp_path / "b.pt", 6, lr_schedule=lr_schedule).elbo == history.elbo
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in whole.state_dict().items())


def test_another_function_of_the_step_is_refused(tmp_path):
    path = tmp_path / "c.pt"
    fit(tiny(), path, 4, schedules={"beta": lambda step: 1 + step / 10})
    fit(tiny(seed=1), path, 5, schedules={"beta": lambda step: 1 + step / 10})
    message = r"schedules\['beta'\] was 1\.1 in epoch 1 \(now 1\.01\).* by their values at the ends of the 5 epochs"
    assert_refused(tiny(), path, 6, match=message, schedules={"beta": lambda step: 1 + step / 100})


def test_a_schedule_that_cannot_last_for_the_run_is_found_out_before_it(tmp_path):
    model = tiny()
    weights, *_ = everything(model)
    with pytest.raises(ValueError, match=r"lr_schedule cannot last for epochs=6, .* number of total steps is 4"):
        fit(model, tmp_path / "c.pt", 6, lr_schedule=lambda o: OneCycleLR(o, 1e-2, total_steps=4))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not list(tmp_path.iterdir())


class Running:
    """A callable with a state: its value falls whenever it is called."""

    def __init__(self):
        self.value = 1.0

    def __call__(self, _):
        self.value *= 0.9
        return self.value


def running():
    value = 1.0

    def call(_):
        nonlocal value
        value *= 0.9
        return value

    return call


def random_numbers(_):
    return 1 + random.random() + np.random.rand() + float(torch.rand(()))  # noqa: NPY002 as users have them


@pytest.mark.parametrize("make", [Running, lambda: random_numbers])
def test_a_checkpoint_leaves_the_state_of_schedules_alone(tmp_path, make):
    outcomes = []
    for path in (None, tmp_path / "c.pt"):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        model = tiny()
        settings = {"schedules": {"beta": make()}, "lr_schedule": lambda o: LambdaLR(o, make())}
        outcomes.append((fit(model, path, 3, resume=False, **settings).elbo, everything(model)[0]))
    assert outcomes[0][0] == outcomes[1][0]
    assert all(torch.equal(value, outcomes[1][1][name]) for name, value in outcomes[0][1].items())


def test_a_function_with_a_state_is_not_compared_and_says_so(tmp_path):
    for resume in (False, True):
        settings = {"schedules": {"beta": running()}, "lr_schedule": lambda o: LambdaLR(o, running())}
        with pytest.warns(UserWarning, match="is no function of the step alone: .* does not compare it") as caught:
            fit(tiny(), tmp_path / "c.pt", 3 + resume, resume=resume, **settings)
        messages = "".join(str(warning.message) for warning in caught)
        assert all(f"{name} is no function" in messages for name in ("schedules['beta']", "lr_schedule"))


class Going:
    """A callable that cannot be copied."""

    def __init__(self):
        self.rates = iter_rates()

    def __call__(self, _):
        return next(self.rates)


def test_what_cannot_be_copied_is_not_compared_and_says_so(tmp_path):
    expected = fit(tiny(), None, 4, resume=False, lr_schedule=lambda o: LambdaLR(o, Going())).elbo
    for epochs in (2, 4):
        with pytest.warns(UserWarning, match=r"lr_schedule cannot be copied \(TypeError: .* does not compare it"):
            history = fit(tiny(), tmp_path / "c.pt", epochs, lr_schedule=lambda o: LambdaLR(o, Going()))
    assert history.elbo == expected


def iter_rates():
    yield from (1 / n for n in range(1, 20))


def split(optimizer):
    parameters = optimizer.param_groups[0]["params"]
    optimizer.add_param_group({"params": [parameters.pop()]})
    return StepLR(optimizer, 2)


def amsgrad(optimizer):
    optimizer.param_groups[0]["amsgrad"] = True
    return StepLR(optimizer, 2)


# Optimisers


def two_groups(parameters):
    """No weight decay on vectors."""
    vectors, matrices = ([p for p in parameters if (p.ndim > 1) == is_matrix] for is_matrix in (False, True))
    return torch.optim.AdamW([{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "lr": 0.01}])


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": functools.partial(torch.optim.SGD, lr=1e-4)},
        {"optimizer": functools.partial(torch.optim.SGD, lr=1e-4, momentum=0.9), "clip_norm": 0.5},
        {"optimizer": two_groups, "lr_schedule": drop},
        {"optimizer": functools.partial(torch.optim.Adam, lr=torch.tensor(1e-3), amsgrad=True)},
        {"optimizer": torch.optim.NAdam},
        {"optimizer": torch.optim.Rprop},
        {"weight_decay": 0.1},
        {"lr_schedule": split},
        {"lr_schedule": amsgrad},
    ],
)
def test_any_optimiser_is_resumed_exactly(tmp_path, settings):
    whole, resumed = tiny(), tiny(seed=1)
    settings = {"cooldown": 0} | settings
    history = fit(whole, None, 5, resume=False, **settings)
    fit(tiny(), tmp_path / "c.pt", 2, **settings)
    assert fit(resumed, tmp_path / "c.pt", 5, **settings).elbo == history.elbo
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert any(not torch.equal(value, whole.state_dict()[name]) for name, value in tiny().state_dict().items())


def test_another_optimiser_is_refused(tmp_path):
    path, sgd = tmp_path / "c.pt", functools.partial(torch.optim.SGD, lr=1e-4, momentum=0.9)
    fit(tiny(), path, 2, optimizer=sgd)
    for other, message in (
        (torch.optim.NAdam, r"optimizer=SGD \(now NAdam\)"),
        (None, r"lr=None \(now 0\.001\), optimizer=SGD \(now Adam\)|optimizer=SGD"),
        (functools.partial(sgd, momentum=0.8), r"optimiser had momentum=0\.9 after as many epochs \(now 0\.8\)"),
        (lambda parameters: sgd(parameters[::-1]), "trained="),
    ):
        assert_refused(tiny(seed=1), path, match=message, optimizer=other)
    assert_refused(tiny(seed=1), path, match=r"clip_norm=None \(now 1\.0\)", optimizer=sgd, clip_norm=1)
    state = vsc.load_checkpoint(path)
    for value, message in (
        (torch.zeros(7), "momentum_buffer like a tensor of shape"),
        (torch.full((3, 6), torch.nan), "momentum_buffer finite"),
        ("x", "momentum_buffer like a tensor"),
    ):
        torch.save(altered(state, ("optimizer", "state", 0, "momentum_buffer"), value), tmp_path / "altered.pt")
        assert_refused(tiny(seed=1), tmp_path / "altered.pt", match=message, optimizer=sgd)


def test_format_1_is_compared_without_regard_to_where_it_describes_gates(tmp_path):
    path = tmp_path / "c.pt"
    fit(tiny(beta=2.0), path, 2, resume=False, schedules=None)
    state = torch.load(path, weights_only=True)
    old = re.sub(r"\n *\(gate\): .*(?=\n)", "", state["settings"]["model"])
    gate = "gate=BinaryConcrete(temperature=0.5, hard=True), slab="
    state |= {"format": 1, "settings": state["settings"] | {"model": old.replace("slab=", gate, 1)}}
    torch.save(state, path)
    other = tiny(beta=2.0)
    other.encoder.gate = vsc.gates.ShiftedSigmoid()
    for model in (tiny(beta=9.0), other):
        with pytest.raises(ValueError, match="is of a run with model="):
            fit(model, path, 3, schedules=None)
    assert len(fit(tiny(beta=2.0), path, 3, schedules=None)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 0.5}, r"noise=None \(now 0\.5\)"),
        ({"slab": "truncated-normal"}, r"slab=normal \(now truncated-normal\)"),
        ({"hidden": (4,)}, r"hidden=\[\] \(now \[4\]\)"),
        ({"num_features": 17, "scale": "amortised"}, r"num_features=16 \(now 17\), scale=per-latent \(now amortised\)"),
    ],
)
def test_arguments_that_differ_are_named(options, message, tmp_path):
    kind, x = {"num_features": 16, "expected_active": 2}, torch.randn(50, 8)
    options_of_fit = {"progress": False, "checkpoint": tmp_path / "c.pt", "device": "cpu"}
    vsc.fit(vsc.SparseDictionary(8, **kind), x, epochs=1, **options_of_fit)
    with pytest.raises(ValueError, match=rf"c\.pt is of a model with {message}; build the model with the same"):
        vsc.fit(vsc.SparseDictionary(8, **(kind | options)), x, epochs=2, resume=True, **options_of_fit)
    vsc.fit(vsc.SparseDictionary((8,), learn_slab=True, **kind), x, epochs=2, resume=True, **options_of_fit)
