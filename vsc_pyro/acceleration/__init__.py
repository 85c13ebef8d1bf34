r"""Compiled steps: `CompiledSVI` is the twin of `vsc_pyro.SVI` without Pyro's bookkeeping.

A step of a static Pyro program does the same tensor operations every time. Finding out which (traces, messengers, the
autograd graph) takes about as long as doing them. `CompiledSVI` records the loss and the gradients of the unchanged
`model` and `guide` once, as one graph (`torch.fx.experimental.proxy_tensor.make_fx`), compiles the graph
(`torch._inductor`), and from then on runs only that. `Replay` captures a whole step, optimiser included, as a CUDA
graph. `CompiledFunction` does the same without gradients, for the draws of `vsc_pyro.evaluate`. `fit_ensemble` maps one
recorded step over several models.

**The contract** is that of ``jax.jit``: *what changes is a tensor*.

=================================================  =====================================================================
read anew in every step                            arguments, parameters, buffers (``vae.beta``, a gate's temperature)
                                                   and all other tensors, by their values
drawn anew in every step                           torch's random numbers: the same seed draws the same as eager steps
another graph is captured for other                shapes and types of arguments; Python numbers among them (twice);
                                                   modes, plain attributes and parts of modules; attributes of the ELBO
constant, for good                                 all other Python state, and Python's or NumPy's random numbers
=================================================  =====================================================================

**What cannot be captured** raises one warning that says why, and steps are those of `vsc_pyro.SVI` from then on:

* programs that read values of tensors (``if loss > 0``; Pyro's `TraceEnum_ELBO` does);
* programs that change Python state: a counter in an attribute, closure or global variable, a list that grows;
* programs whose eager steps differ with the same random numbers, or differ from the graph.

To find these, a graph is compared with eager steps of the same random numbers before it is used, in its next step, in
pairs of steps after 10, 100 and 1,000, and then every 1,999 steps. A comparison takes about as long as ten steps. It
restores tensors, gradients and random numbers of torch; Python state may have moved on. State that is out of sight and
without effect on a comparison stays as it was when captured. Hooks and ``print`` run while a step is captured or
compared, and never in the graph. A step that fails raises its own error, and graphs stay.
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
