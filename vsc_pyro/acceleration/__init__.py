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
Python numbers among the arguments     as constants; one that changes is an input from its second value on, and where it
                                       cannot be, a constant of two graphs, and steps with further values are eager
Python numbers, flags, gates and       as constants; where one has changed (`eval()`, a new gate, another module or
modes of the modules that are run,     number of particles), another graph is captured
and of the ELBO
what is in lists, dictionaries and     as constants, for good: where another object has taken its place in the module,
other objects of a module, and in      another graph is captured; a change within it is seen where a step makes it, and
closures and globals                   else by the next comparison
=====================================  =================================================================================

Whatever decides by the value of a tensor (``if loss > 0``, ``.item()``) cannot be recorded, and what depends on
anything else that changes would be recorded once and for all. The first raises; Pyro's enumeration (`TraceEnum_ELBO`)
does it. For the second, programs are looked through before they are recorded (`acceleration.saved_state`): attributes
of objects, lists, arrays, closures, globals, generators of random numbers and Pyro's parameter store, and whatever of
these a step changes, be it a counter that anneals something or a list that something is logged in, is noticed. What is
out of reach, within objects of other libraries, behind a global or attribute that is looked up by a string
(``globals()["n"]``, `getattr`, `importlib`), in an object that the first step makes in a cache or out of Python, is
noticed where it makes a difference to a comparison, and stays as it was when captured where it does not: each graph is
compared with an eager step of the same random numbers before it is used, in its next step, in pairs of steps after 10,
100 and 1,000, and every 1,999 steps, each gradient against its own size. A comparison takes about as long as ten steps.

In all of these cases there is one warning that says why, and the steps are those of `vsc_pyro.SVI` from then on, from
the state that there would be if nothing had been tried out, but for what is out of reach. A step that fails as it
stands raises its own error, and graphs stay. What hooks and programs print, they print while they are being captured,
and no more; Pyro's own checks are made in the first step.

`CompiledFunction` does the same, without gradients, for a function of tensors and distributions: what
`vsc_pyro.evaluate` repeats for its draws.
"""

from __future__ import annotations

from vsc_pyro.acceleration.backends import BACKENDS, is_worth_compiling, missing_compiler
from vsc_pyro.acceleration.compiled_function import CompiledFunction
from vsc_pyro.acceleration.compiled_svi import CompiledSVI
from vsc_pyro.acceleration.replay import Replay, capture_on

__all__ = [
    "BACKENDS",
    "CompiledFunction",
    "CompiledSVI",
    "Replay",
    "capture_on",
    "is_worth_compiling",
    "missing_compiler",
]
