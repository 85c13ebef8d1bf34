import pytest
import torch
from conftest import assert_mean_equals

from vsc_pyro.gates import (
    GATES,
    BinaryConcrete,
    DisARM,
    Gate,
    ReinMax,
    ScoreFunction,
    ShiftedSigmoid,
    StraightThrough,
    get_gate,
)

LOGITS = torch.tensor([-4.0, -1.0, 0.0, 0.5, 3.0], dtype=torch.float64)
ALL = [StraightThrough(), BinaryConcrete(), BinaryConcrete(0.1), BinaryConcrete(hard=False), ShiftedSigmoid()]
ALL += [ShiftedSigmoid(c=200, hard=True), DisARM(), ScoreFunction(), ReinMax()]


@pytest.mark.parametrize("gate", ALL, ids=str)
def test_hard_spikes_have_the_exact_probability(gate):
    hard = gate.draw(LOGITS.expand(200_000, -1)).hard
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert_mean_equals(hard, LOGITS.sigmoid())


@pytest.mark.parametrize("gate", ALL, ids=str)
def test_hardened_gates_multiply_by_the_spike_itself(gate):
    hard, factor, _ = gate.hardened().draw(LOGITS.expand(1000, -1).clone().requires_grad_())
    assert torch.equal(hard, factor)
    assert not hard.requires_grad
    assert factor.requires_grad == gate.reparametrized
    assert (hardened := gate.hardened()).hardened() is hardened


@pytest.mark.parametrize("gate", [BinaryConcrete(hard=False), ShiftedSigmoid()], ids=str)
def test_soft_gates_are_soft_and_round_to_their_spike(gate):
    hard, factor, _ = gate.draw(LOGITS.expand(1000, -1))
    assert ((factor > 0) & (factor < 1)).double().mean() > 0.9
    assert torch.equal((factor > 0.5).double(), hard)


def test_straight_through_has_the_derivative_of_the_probability():
    logits = LOGITS.clone().requires_grad_()
    StraightThrough().draw(logits).factor.sum().backward()
    gamma = LOGITS.sigmoid()
    torch.testing.assert_close(logits.grad, gamma * (1 - gamma))


def test_reinmax_is_unbiased_for_quadratic_functions():
    logits = LOGITS.expand(100_000, -1).clone().requires_grad_()
    factor = ReinMax().draw(logits).factor
    (3 * factor.square() - 2 * factor).sum().backward()
    gamma = LOGITS.sigmoid()
    assert_mean_equals(logits.grad, gamma * (1 - gamma))  # f(1) - f(0) is 1


@pytest.mark.parametrize("gate", ALL, ids=str)
def test_gradients_are_finite_at_extreme_logits(gate):
    logits = torch.tensor([-1e3, -50.0, 50.0, 1e3]).expand(1000, -1).clone().requires_grad_()
    hard, factor, score = gate.draw(logits)
    (factor if gate.reparametrized else score).sum().backward()
    assert torch.isfinite(factor).all()
    assert torch.isfinite(logits.grad).all()
    assert torch.equal(hard[0], torch.tensor([0.0, 0.0, 1.0, 1.0]))


def test_the_score_is_the_log_probability_of_the_spike():
    spikes, _, score = ScoreFunction().draw(LOGITS.expand(100, -1))
    torch.testing.assert_close(score, torch.distributions.Bernoulli(logits=LOGITS).log_prob(spikes))


def test_the_score_of_a_pair_is_that_of_the_paper():
    logits = torch.cat([LOGITS, torch.tensor([-1e3, 1e3])]).expand(2, 10_000, -1).clone().requires_grad_()
    hard, factor, score = DisARM().draw_together(logits)
    assert torch.equal(hard, factor)
    signal = torch.randn(2, 10_000, 1)
    (signal * score).mean(0).sum().backward()
    first, second = hard
    # Dong et al. (2020), equation 9, with the sum over both halves, which share their parameter.
    differ = (-1) ** second * (first != second) * torch.sigmoid(logits[0].detach().abs())
    torch.testing.assert_close(logits.grad.sum(0), 0.5 * (signal[0] - signal[1]) * differ)


def test_names_and_objects():
    assert {name: type(get_gate(name)) for name in GATES} == GATES
    assert {"straight-through", "reinmax", "concrete", "shifted-sigmoid", "score", "disarm"} <= set(GATES)
    assert get_gate(gate := BinaryConcrete(0.3)) is gate
    assert gate.temperature == 0.3
    with pytest.raises(ValueError, match=r"unknown gate 'hard'; known are 'concrete', 'disarm', 'reinmax', 'score'"):
        get_gate("hard")
    with pytest.raises(ValueError, match=r"temperature must be a finite number above 0, got 0"):
        BinaryConcrete(temperature=0)
    with pytest.raises(ValueError, match=r"c must be .* got nan"):
        ShiftedSigmoid(c=float("nan"))
    with pytest.raises(NotImplementedError, match="must define draw"):
        Gate().draw(LOGITS)
    with pytest.raises(NotImplementedError, match="must define draw_together"):
        Gate().draw_together(LOGITS)
