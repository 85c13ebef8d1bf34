import pytest
import torch

import vsc_pyro as vsc


def test_priors_are_distributions_of_a_code():
    for prior in (vsc.NormalPrior(5), vsc.SpikeSlabPrior(5)):
        p = prior(torch.zeros(3, 64))
        assert (p.batch_shape, p.event_shape) == ((), (5,))
        assert p.expand((3,)).sample().shape == (3, 5)


def test_inclusion_is_the_probability_of_not_being_zero():
    p = vsc.SpikeSlabPrior(2, inclusion=torch.tensor([0.01, 0.7]))(torch.zeros(1))
    torch.testing.assert_close(p.base_dist.probs, torch.tensor([0.01, 0.7]))
    assert (p.sample((2000,)) != 0).float().mean(0)[1] > 0.6


def test_learned_inclusion_is_a_parameter_and_fixed_is_not():
    fixed, learned = vsc.SpikeSlabPrior(3, 0.2), vsc.SpikeSlabPrior(3, 0.2, learn_inclusion=True)
    assert list(fixed.parameters()) == []
    assert [name for name, _ in learned.named_parameters()] == ["inclusion_logits"]
    learned(torch.zeros(1)).log_prob(torch.zeros(3)).backward()
    torch.testing.assert_close(learned.inclusion_logits.grad, torch.full((3,), -0.2))
    # What is fixed travels with the weights too; fit tells the two apart when it resumes (test_training.py).
    assert fixed.state_dict().keys() == learned.state_dict().keys()
    assert "inclusion=0.2, learn_inclusion=True" in repr(learned)


@pytest.mark.parametrize("inclusion", [0, 1, -0.1, 1.5, float("nan"), torch.tensor([0.5, 0.0, 0.5])])
def test_inclusion_outside_the_unit_interval(inclusion):
    with pytest.raises(ValueError, match=r"inclusion must lie strictly between 0 and 1, got"):
        vsc.SpikeSlabPrior(3, inclusion)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"one for each of the 3 latents, got a tensor of shape \(2,\)"):
        vsc.SpikeSlabPrior(3, torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match="latent_dim must be"):
        vsc.NormalPrior(0)
