"""`fit_ensemble`: several small models of one build, trained together in one step.

A small model's step is short of arithmetic: most of it is calling one small operation after another. Here the step of
one model is recorded (`vsc_pyro.compiled`) and mapped over all of them (`torch.func.vmap`), so that each operation is
called once for all, and compiled in that form. Milliseconds for each model and step, on one thread of a Xeon
(``benchmarks/ensemble.py``), pixels-hidden-latents:

=======================================  ===================  ====================  =====================
..                                       64-64-10, batch 100  64-200-50, batch 200  784-400-50, batch 200
=======================================  ===================  ====================  =====================
one model, eager                         2.18                 3.74                  12.7
one model, compiled                      0.46                 1.53                  8.4
each of 2 together, compiled             0.22                 1.12                  7.6
each of 8 together, compiled             0.15                 1.05                  7.6
each of 16 together, compiled            0.14                 1.10                  7.8
each of 16 together, not compiled        0.34                 1.88                  10.7
=======================================  ===================  ====================  =====================

So it pays for small models, a third of whose time is left, and not for those whose matrix products fill the processor:
train these one after the other. On a GPU nothing has been measured.
"""

from __future__ import annotations

from vsc_pyro.ensembles.fitting import fit_ensemble
from vsc_pyro.ensembles.stacked import Ensemble

__all__ = ["Ensemble", "fit_ensemble"]
