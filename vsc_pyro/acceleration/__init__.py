r"""Compiled steps: `CompiledSVI` takes the steps of `vsc_pyro.SVI` without Pyro's bookkeeping.

A step of a static Pyro program does the same tensor operations every time. Re-tracing them (traces, messengers, the
autograd graph) is overhead. `CompiledSVI` records the loss and the gradients of the unchanged `model` and `guide` once,
as one graph (`torch.fx.experimental.proxy_tensor.make_fx`), compiles the graph (`torch._inductor`), and from then on
runs only that. `Replay` captures a whole step, optimiser included, as a CUDA graph. `CompiledFunction` compiles
functions without gradients, for the draws of `vsc_pyro.evaluate`. `fit_ensemble` maps one recorded step over several
models.

**The contract** is that of ``jax.jit``: *what changes is a tensor*.

=================================================  =====================================================================
read anew in every step                            arguments, parameters, buffers (``vae.beta``, a gate's temperature)
                                                   and all other tensors, by their values
drawn anew in every step                           torch's random numbers: the same seed draws the same as eager steps
another graph is captured for other                shapes and types of arguments; Python numbers among them (at most
                                                   two graphs for Python numbers); modes, plain attributes and parts of
                                                   modules; attributes of the ELBO
constant, for good                                 all other Python state, and Python's or NumPy's random numbers
=================================================  =====================================================================

**If a program cannot be captured**, one warning says why and `vsc_pyro.SVI` takes the steps:

* programs that read values of tensors (``if loss > 0``; Pyro's `TraceEnum_ELBO` does);
* programs that change Python state: a counter in an attribute, closure or global variable, a list that grows;
* programs whose eager steps differ with the same random numbers, or differ from the graph.

To find these, each graph is compared with eager steps of the same random numbers before use, at the next step, at pairs
of steps after 10, 100 and 1,000, then every 1,999. A comparison restores tensors, gradients and random numbers of
torch; Python state may have moved on. State that a comparison cannot see keeps its captured value. Hooks and ``print``
run while a step is captured or compared, and never in the graph. A failing step raises its own error; graphs are kept.
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
