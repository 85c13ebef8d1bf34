r"""`CompiledSVI`: the twin of `vsc_pyro.SVI` from whose step Pyro is gone.

A step of a static Pyro program does the same tensor operations every time, and spends about as long on finding out
which (traces, messengers, autograd's graph) as on doing them. Here the loss and the gradients of the unchanged `model`
and `guide` are recorded once, below autograd, as one graph (`torch.fx.experimental.proxy_tensor.make_fx`), compiled
(`torch._inductor`), and from then on only that is run:

=====================================  =================================================================================
what a step reads                      how the graph has it
=====================================  =================================================================================
arguments, parameters, buffers,        as inputs, read as they stand; a graph is kept for each shape and type of the
other tensors of the programs          arguments
random numbers                         drawn anew by the same operations in the same order: the same seed gives the same
                                       numbers as an eager step
numbers named in `live`                as inputs, read from the model before every step
Python numbers, flags, gates and       as constants; where one has changed (`eval()`, a new gate, another module or
modes of the modules that are run,     number of particles), another graph is captured
and of the ELBO
what is in lists, dictionaries and     as constants, for good: a change of it goes unseen
other objects of a module, and in
closures and globals
=====================================  =================================================================================

Whatever decides by the value of a tensor (``if loss > 0``, ``.item()``) cannot be recorded, and what depends on
anything else, such as NumPy's random numbers, would be recorded once and for all. The first raises, the second is found
by comparing each captured graph with an eager step of other random numbers. In both cases there is one warning that
says why, and the steps are those of `vsc_pyro.SVI` from then on. What programs and hooks do beside (print, log, count
in a closure) they do while they are being captured, and no more; Pyro's own checks are made in the first step.

`CompiledFunction` does the same, without gradients, for a function of tensors and distributions: what
`vsc_pyro.evaluate` repeats for its draws.
"""

from __future__ import annotations

from vsc_pyro.compiled.backends import BACKENDS, is_worth_compiling, missing_compiler
from vsc_pyro.compiled.function import CompiledFunction
from vsc_pyro.compiled.replay import Replay, capture_on
from vsc_pyro.compiled.svi import CompiledSVI

__all__ = [
    "BACKENDS",
    "CompiledFunction",
    "CompiledSVI",
    "Replay",
    "capture_on",
    "is_worth_compiling",
    "missing_compiler",
]
