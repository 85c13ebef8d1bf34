import pytest
import torch

import vsc_pyro as vsc
from vsc_pyro.decoders import CrossEntropyBernoulli


def test_likelihood_has_the_shape_of_the_data():
    p = vsc.BernoulliDecoder(5, (1, 8, 8), hidden=(16,))(torch.randn(3, 6, 5))
    assert (p.batch_shape, p.event_shape) == ((3, 6), (1, 8, 8))
    assert set(p.sample().unique().tolist()) == {0.0, 1.0}
    assert vsc.BernoulliDecoder(5, 64)(torch.randn(6, 5)).event_shape == (64,)


def test_grey_levels_are_scored_by_their_cross_entropy():
    logits, x = torch.randn(50), torch.rand(50)
    expected = x * logits.sigmoid().log() + (1 - x) * (1 - logits.sigmoid()).log()
    torch.testing.assert_close(CrossEntropyBernoulli(logits=logits).log_prob(x), expected)
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="within the support"):
            CrossEntropyBernoulli(logits=logits).log_prob(torch.full((50,), bad))


def test_bad_arguments():
    with pytest.raises(ValueError, match="latent_dim must be"):
        vsc.BernoulliDecoder(0, 64)
    with pytest.raises(ValueError, match="output_shape must be"):
        vsc.BernoulliDecoder(5, (8, -8))
