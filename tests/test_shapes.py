"""The shapes in annotations hold: for every encoder, prior and decoder, checked by jaxtyping while a step is taken."""

import sys

import jaxtyping
import pyro
import pytest
import torch
from beartype import beartype
from problems.pairs import ADMISSIBLE, SHAPE, J, build

import vsc_pyro as vsc
from vsc_pyro.distributions.assigned_mixture import AssignedMixture
from vsc_pyro.distributions.normal_tails import ShiftedNormalTails
from vsc_pyro.models import encoders
from vsc_pyro.models.decoders.base import PixelDecoder

CHECKED = [
    (cls, name)
    for cls in [
        *{base for cls in vars(encoders).values() if isinstance(cls, type) for base in cls.__mro__},
        *(PixelDecoder, vsc.NormalDecoder, vsc.FlatPrior, vsc.NormalMixturePrior, vsc.SpikeSlabPrior),
        *(*vsc.NormalPrior.__mro__, vsc.PseudoInputPrior, vsc.SpikeSlab, AssignedMixture, ShiftedNormalTails),
    ]
    for name in ("forward", "log_prob")
    if "Float[" in str(getattr(vars(cls).get(name), "__annotations__", ""))
]


pytestmark = pytest.mark.filterwarnings("ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")


@pytest.fixture
def checked(monkeypatch):
    """Check the annotations of all these methods."""
    for cls, name in CHECKED:
        monkeypatch.setattr(sys.modules[cls.__module__], "Float", jaxtyping.Float, raising=False)
        monkeypatch.setattr(cls, name, jaxtyping.jaxtyped(typechecker=beartype)(vars(cls)[name]))


def test_every_kind_of_part_is_among_them():
    names = {(cls.__name__, name) for cls, name in CHECKED}
    assert {name for _, name in names} == {"forward", "log_prob"}
    assert {("SpikeSlabEncoder", "forward"), ("PixelDecoder", "forward"), ("SpikeSlabPrior", "forward")} < names
    assert len([name for _, name in names if name == "forward"]) >= 8


@pytest.mark.filterwarnings("ignore:the KL divergence at site 'z' has no closed form and is sampled")
@pytest.mark.parametrize(("encoder_name", "prior_name", "kind"), ADMISSIBLE)
@pytest.mark.usefixtures("checked")
def test_shapes_hold_in_a_step(encoder_name, prior_name, kind):
    model = build(encoder_name, prior_name)
    with pyro.get_param_store().scope():
        vsc.AnalyticELBO(max_plate_nesting=1).loss_and_grads(model.model, model.guide, torch.rand(3, *SHAPE).round())
    with model.evaluating():
        assert model.decoder(torch.zeros(2, 3, J)).batch_shape == (2, 3)


@pytest.mark.usefixtures("checked")
def test_wrong_shapes_are_noticed():
    prior = vsc.SpikeSlabPrior(J)
    with pytest.raises(jaxtyping.TypeCheckError, match="Float"):
        prior(torch.zeros(()))
    with pytest.raises(jaxtyping.TypeCheckError, match="Float"):
        vsc.NormalEncoder(4, J)(torch.zeros(3, 4, dtype=torch.long))
    with pytest.raises(jaxtyping.TypeCheckError, match="Float"):
        prior(torch.zeros(3, 4, dtype=torch.long))
