"""What a draw of a spike-and-slab remembers, and how a draw that has lost it is told from a number like any other."""

from __future__ import annotations

import re
import sys
import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.infer import ELBO, RenyiELBO, TraceTailAdaptive_ELBO, TraceTMC_ELBO
from pyro.poutine import runtime
from torch import Tensor

from vsc_pyro.gates import Gate

if TYPE_CHECKING:
    from vsc_pyro.distributions.spike_slab import SpikeSlab

_KEY = "_spike_slab_draw"
PARTICLES = "num_particles_vectorized"  # what Pyro calls its plate over particles

# Operations that hand a draw on, cell by cell; what comes out of any other is a number of its own.
_HANDS_ON = re.compile(
    r"(View|UnsafeView|ReshapeAlias|Expand|Unsqueeze|Squeeze|Select|Slice|Permute|Transpose|T|Clone|ToCopy|Alias|"
    r"AsStrided|Index|Mul|Div|Neg|Add|Sub)Backward\d*|CopySlices"
)


class Draw(NamedTuple):
    """The slab's draw, the spike with the derivative of a density, who drew them, and the score if the gate has one."""

    slab: Tensor
    spike: Tensor
    by: SpikeSlab
    score: Tensor | None = None


class CentredScoreParts(ScoreParts):
    """Score parts of draws that are held against each other already: an ELBO's own baseline would double the score."""

    def scale_and_mask(self, scale: float | Tensor = 1.0, mask: Tensor | None = None) -> CentredScoreParts:
        return CentredScoreParts(*super().scale_and_mask(scale, mask))


def remember(value: Tensor, draw: Draw) -> None:
    """Attach `draw` to `value`, and the gate, if it needs the draw, to the node of the autograd graph behind it."""
    setattr(value, _KEY, (draw, _version(value)))
    if value.grad_fn is not None and (draw.by.has_rsample or draw.by.gate.draws_at_once > 1):
        value.grad_fn.metadata[_KEY] = draw.by.gate


def draw_of(value: Tensor) -> Draw | None:
    """The draw that `value` is; None if it is none, or has been edited in place since."""
    draw, version = getattr(value, _KEY, (None, None))
    return draw if version == _version(value) else None


def expand_draw(value: Tensor, shape: torch.Size) -> Tensor:
    """``value.expand(shape)``, which remembers the draw that `value` is."""
    expanded = value.expand(shape)
    if draw := draw_of(value):
        score = None if draw.score is None else draw.score.expand(shape)
        remember(expanded, Draw(draw.slab.expand(shape), draw.spike.expand(shape), draw.by, score))
    return expanded


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version


def gate_behind(value: Tensor) -> Gate | None:
    """The gate, of those that need it, whose draw this value is, reshaped, copied or rescaled; None if it is none."""
    node = value.grad_fn
    while node is not None:
        if _KEY in node.metadata:
            return node.metadata[_KEY]
        sources = [source for source, _ in node.next_functions if source is not None]
        node = sources[0] if len(sources) == 1 and _HANDS_ON.fullmatch(type(node).__name__) else None
    return None


def in_plate_of_particles() -> bool:
    """Whether an ELBO is drawing several particles at once."""
    return any(getattr(messenger, "name", None) == PARTICLES for messenger in runtime._PYRO_STACK)


def warn_if_not_linear(gate: Gate) -> None:
    """Warn if the ELBO that is asking, somewhere up the stack, is one that a relaxed gate biases in the KL part too."""
    # No distribution is told which ELBO asks for its score, and these take a relaxed gate without complaint.
    frame = sys._getframe(1)
    while frame is not None and not isinstance(frame.f_locals.get("self"), ELBO):
        frame = frame.f_back
    elbo = frame.f_locals["self"] if frame is not None else None
    if isinstance(elbo, (RenyiELBO, TraceTailAdaptive_ELBO, TraceTMC_ELBO)) or not getattr(elbo, "is_linear", True):
        warnings.warn(
            f"{type(elbo).__name__} is not linear in log-densities, so with {gate!r} the KL part of the spikes' "
            "gradient is biased as well as the likelihood's; Trace_ELBO and TraceMeanField_ELBO keep it exact",
            stacklevel=2,
        )
