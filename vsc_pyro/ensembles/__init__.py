"""`fit_ensemble`: several small models of one build, trained together in one step.

A small model's step is short of arithmetic: most of it is calling one small operation after another. Here the step of
one model is recorded (`vsc_pyro.compiled`) and mapped over all of them (`torch.func.vmap`), so that each operation is
called once for all, and compiled in that form. Milliseconds for each model and step, on one thread of a Xeon
(``benchmarks/ensemble.py``), pixels-hidden-latents:

=======================================  ===================  ====================  =====================
..                                       64-64-10, batch 100  64-200-50, batch 200  784-400-50, batch 200
=======================================  ===================  ====================  =====================
one model, eager                         2.35                 3.46                  10.1
one model, compiled                      0.42                 1.39                  6.8
each of 2 together, compiled             0.22                 1.11                  6.4
each of 8 together, compiled             0.16                 1.01                  7.1
each of 16 together, compiled            0.15                 1.06                  7.0
each of 16 together, not compiled        0.32                 1.68                  9.4
=======================================  ===================  ====================  =====================

So it pays for small models, a third of whose time is left, and not for those whose matrix products fill the processor:
train these one after the other. With the data's drawing, an epoch of the bundled digits takes 33 ms for eight models of
the first kind together, and for one by `fit` 12 ms compiled and 36 ms not. On a GPU nothing has been measured.
"""

from __future__ import annotations

from vsc_pyro.ensembles.fitting import fit_ensemble
from vsc_pyro.ensembles.stacked import Ensemble

__all__ = ["Ensemble", "fit_ensemble"]
