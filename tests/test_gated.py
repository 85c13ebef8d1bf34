import pytest
import torch

import vsc_pyro as vsc


def test_gated_units_are_those_of_the_formula_with_nothing_beside_them():
    encoder = vsc.NormalEncoder((1, 2, 3), 4, trunk=vsc.GatedTrunk(6, (5,)))
    x = torch.randn(7, 1, 2, 3)
    gated, heads = encoder.network[0].layers[0], encoder.own_layer
    (w, v), (b, c), rows = gated.weight.chunk(2), gated.bias.chunk(2), x.flatten(1)
    h = (rows @ w.T + b) * torch.sigmoid(rows @ v.T + c)
    torch.testing.assert_close(encoder(x).mean, (h @ heads.weight.T + heads.bias)[:, :4])

    trunk = vsc.GatedTrunk(4, (5, 6), output_shape=(1, 2, 3))
    decoder, z = vsc.BernoulliDecoder(4, (1, 2, 3), trunk=trunk), torch.randn(8, 7, 4)
    logits = decoder.pixels(z)
    torch.testing.assert_close(logits, trunk(decoder.own_layer(z)))
    torch.testing.assert_close(logits[3], decoder.pixels(z[3]))
    with pytest.raises(ValueError, match="hidden must have the width of one gated layer at least, got none"):
        vsc.GatedTrunk(6, ())


@pytest.mark.parametrize(("options", "message"), [({"hidden": ()}, "got none"), ({"in_features": 0}, "in_features")])
def test_sizes_that_are_no_network_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        vsc.GatedTrunk(**{"in_features": 6, **options})


def test_a_decoders_trunk_is_no_encoders():
    with pytest.raises(ValueError, match=r"trunk\.out_features"):
        vsc.NormalEncoder(6, 4, trunk=vsc.GatedTrunk(6, (5,), output_shape=(6,)))
    with pytest.raises(ValueError, match=r"maps features of shape \(2, 1, 4\) to \(2, 5\), which does not fit"):
        vsc.BernoulliDecoder(4, (6,), trunk=vsc.GatedTrunk(4, (5,)))
