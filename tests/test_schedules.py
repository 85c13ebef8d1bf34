import pytest
import torch

import vsc_pyro as vsc
from vsc_pyro.training.schedules import Cooldown, Ramp, set_values, slab_warmup

QUIET = {"progress": False, "device": "cpu", "batch_size": 200}


def test_a_ramp_holds_rises_and_stays():
    ramp = Ramp(0, 1, hold=2, length=4)
    assert [ramp(step) for step in range(8)] == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert [Ramp(2.0, 0.5)(step) for step in (0, 10)] == [0.5, 0.5]
    assert slab_warmup() == {"encoder.slab_weight": Ramp(0, 1, 15_000, 5_000)}
    assert slab_warmup(700) == {"encoder.slab_weight": Ramp(0, 1, 150, 50)}


def test_a_rate_is_steady_and_then_falls_in_proportion():
    assert [Cooldown(0.5, 8).factor(epoch) for epoch in range(8)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert [Cooldown(share, 1).factor(0) for share in (0, 0.25, 1)] == [1, 1, 1]
    for share in (-0.1, 1.5, float("nan"), True, "a quarter"):
        with pytest.raises(ValueError, match="cooldown must be a share of the run, from 0 to 1, got"):
            Cooldown(share, 3)


def test_numbers_buffers_and_gates_are_set(small_vae):
    vae = small_vae()
    names = {
        "beta": Ramp(0, 4, 0, 2),
        "encoder.slab_weight": Ramp(0, 1, 0, 2),
        "encoder.gate.temperature": Ramp(1, 0.5),
    }
    buffer = vae.encoder.slab_weight
    set_values(vae, names, 1)
    assert (vae.beta, float(vae.encoder.slab_weight), vae.encoder.gate.temperature) == (2, 0.5, 0.5)
    assert vae.encoder.slab_weight is buffer


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encoder.warmup", r"schedules names 'encoder.warmup', and the model has no such setting"),
        ("encoder.network", r"'encoder.network', which cannot be scheduled; known to work are 'beta'"),
        ("encoder.gate.hard", r"'encoder.gate.hard', which cannot be scheduled"),
        ("encoder.network.1.bias", r"'encoder.network.1.bias', which cannot be scheduled"),
        ("encoder.latent_dim", r"'encoder.latent_dim', which cannot be scheduled"),
        ("prior.inclusion", r"'prior.inclusion', which cannot be scheduled"),
        ("encoder.gate.temperature", r"temperature must be a finite number above 0, got 0.0"),
    ],
)
def test_bad_names_and_values_are_refused_before_any_work(small_vae, digits, name, message):
    vae = small_vae()
    before = vae.state_dict()["encoder.network.1.weight"].clone()
    for ramp in (Ramp(0, 1, 5, 5), Ramp(0.5, 0, 5, 5)):  # bad at once, and bad only later
        with pytest.raises(ValueError, match=message):
            vsc.fit(vae, digits.train, epochs=2, schedules={name: ramp}, **QUIET)
    assert torch.equal(vae.encoder.network[1].weight, before)


def test_a_property_that_is_computed_cannot_be_scheduled(digits):
    decoder = vsc.NormalDecoder(4, (1, 8, 8), variance="shared")
    vae = vsc.VAE(vsc.NormalEncoder((1, 8, 8), 4), decoder, vsc.NormalPrior(4))
    with pytest.raises(ValueError, match=r"'decoder\.scale', which cannot be scheduled"):
        vsc.fit(vae, digits.train, epochs=1, schedules={"decoder.scale": Ramp(1, 0.3)}, **QUIET)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (0.5, r"schedules\['beta'\] must be a function of the step, such as a Ramp, got 0.5"),
        (lambda step: None, r"schedules\['beta'\] must return finite numbers, got None at step"),
        (lambda step: float("nan"), r"must return finite numbers, got nan at step"),
    ],
)
def test_what_is_no_schedule(small_vae, digits, schedule, message):
    with pytest.raises(ValueError, match=message):
        vsc.fit(small_vae(), digits.train, epochs=1, schedules={"beta": schedule}, **QUIET)


def test_a_ramp_that_does_not_end_is_said_and_so_is_what_it_leaves(small_vae, digits):
    vae = small_vae()
    with pytest.warns(UserWarning, match=r"reaches 1 after 20000 steps, and this run has 8: it ends at 0; train"):
        vsc.fit(vae, digits.train, epochs=1, schedules=slab_warmup(), **QUIET)
    with pytest.warns(UserWarning, match=r"slab_weight is 0, left by a slab warm-up.*fill_\(1\.0\) ends"):
        vsc.fit(vae, digits.train, epochs=1, **QUIET)


def test_bad_ramps():
    with pytest.raises(ValueError, match="stop must be a finite number, got nan"):
        Ramp(0, float("nan"))
    with pytest.raises(ValueError, match="hold must be a whole number of at least 0, got -1"):
        Ramp(0, 1, hold=-1)


class Recording:
    """A schedule that says what it was asked."""

    def __init__(self):
        self.steps = []

    def __repr__(self):
        return "Recording()"

    def __call__(self, step):
        self.steps.append(step)
        return 1.0


def test_fit_counts_every_step_and_leaves_the_last_value(small_vae, digits):
    vae, recording = small_vae(), Recording()
    schedules = {"encoder.slab_weight": recording, "beta": Ramp(0, 3, 0, 23)}
    vsc.fit(vae, digits.train, epochs=3, schedules=schedules, **QUIET)
    assert len(digits.train) == 1437  # 8 steps an epoch
    assert recording.steps[-24:] == list(range(24))
    assert vae.beta == 3


def test_warmup_trains_the_spikes_before_the_slabs(small_vae, digits):
    heads = []
    for schedules in ({"encoder.slab_weight": lambda step: 0.0}, slab_warmup(16)):
        vae = small_vae()
        before = vae.encoder.network[-1].bias.detach().clone()
        vsc.fit(vae, digits.train, epochs=2, schedules=schedules, **QUIET)
        heads.append((vae.encoder.network[-1].bias - before).detach().reshape(3, -1).abs().sum(1))
    held, warmed = heads
    assert held[0] == held[1] == 0  # locations and scales had no part in it
    assert held[2] > 0
    assert (warmed > 0).all()


def test_beta_may_start_at_zero(small_vae, digits):
    history = vsc.fit(small_vae(), digits.train, epochs=2, schedules={"beta": Ramp(0, 1, 8, 1)}, **QUIET)
    assert torch.isfinite(torch.tensor(history.elbo)).all()


def test_schedules_survive_resuming(small_vae, digits, tmp_path):
    schedules = {
        "encoder.slab_weight": Ramp(0, 1, 4, 20),
        "beta": Ramp(0, 1, 0, 30),
        "encoder.gate.temperature": Ramp(1, 0.3, 0, 40),
    }
    models = small_vae(), small_vae(), small_vae()
    straight = vsc.fit(models[0], digits.train, epochs=5, schedules=schedules, **QUIET)
    settings = {"schedules": schedules, "checkpoint": tmp_path / "vae.pt", **QUIET}
    with pytest.warns(UserWarning, match="and this run has 16: it ends at"):
        vsc.fit(models[1], digits.train, epochs=2, **settings)
    resumed = vsc.fit(models[2], digits.train, epochs=5, resume=True, **settings)
    assert resumed.elbo == straight.elbo
    for one, other in zip(models[0].state_dict().values(), models[2].state_dict().values(), strict=True):
        assert torch.equal(one, other)
    moved = [(float(model.beta), float(model.encoder.gate.temperature)) for model in (models[0], models[2])]
    assert moved[0] == moved[1] == pytest.approx((1.0, 1 - 0.7 * 39 / 40), abs=0.05)
    # Finished, it is taken up as it was left; and with another schedule it is another run.
    again = small_vae()
    vsc.fit(again, digits.train, epochs=5, resume=True, **settings)
    assert (again.beta, float(again.encoder.slab_weight)) == (models[0].beta, float(models[0].encoder.slab_weight))
    with pytest.raises(ValueError, match=r"is of a run with .*schedules=\{"):
        vsc.fit(small_vae(), digits.train, epochs=6, resume=True, **(settings | {"schedules": {"beta": Ramp(0, 1)}}))


def test_a_refused_run_leaves_settings_also_on_a_device_of_their_own(small_vae, digits, monkeypatch):
    vae = small_vae()
    monkeypatch.setattr(vae, "to", lambda device: vae._apply(lambda tensor: tensor.clone()))  # replaces buffers
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    schedules = {"encoder.gate.temperature": Ramp(0.3, 2)}
    with pytest.raises(ValueError, match="steps by the validation bound, and there is none"):
        vsc.fit(vae, digits.train, epochs=2, warmup=0.5, schedules=schedules, lr_schedule=plateau, **QUIET)
    assert (vae.encoder.gate.temperature, vae.warmup) == (0.5, 1)


def test_a_gate_is_made_and_moved_under_inference_mode(small_vae, digits):
    vae = small_vae()
    with torch.inference_mode():
        vsc.fit(vae, digits.train, epochs=1, gate="concrete", **QUIET)
        gate = vsc.gates.BinaryConcrete(0.5)
    gate.temperature = 0.2
    assert gate.temperature == torch.tensor(0.2)


@pytest.mark.parametrize("value", [None, torch.ones(3), "1"])
def test_a_setting_is_one_number(small_vae, value):
    with pytest.raises(ValueError, match="beta must be one number, got"):
        small_vae().beta = value
