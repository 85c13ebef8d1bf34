"""Decoders: modules whose forward takes codes z and returns the likelihood p(x | z), a distribution.

`BernoulliDecoder` is for binary data, `ContinuousBernoulliDecoder` for data in [0, 1], `NormalDecoder` for real data,
`DictionaryDecoder` for sparse dictionaries of real data, `PoissonDecoder` and `NegativeBinomialDecoder` for counts. A
custom decoder is any `torch.nn.Module` that takes z of shape ``(*, J)``, with any number of leading dimensions, and
returns a Pyro distribution of `batch_shape` ``(*)``.
"""

from vsc_pyro.models.decoders.bernoulli import BernoulliDecoder, CrossEntropyBernoulli
from vsc_pyro.models.decoders.continuous_bernoulli import ContinuousBernoulliDecoder, StableContinuousBernoulli
from vsc_pyro.models.decoders.counts import NegativeBinomialDecoder, PoissonDecoder
from vsc_pyro.models.decoders.dictionary import DictionaryDecoder
from vsc_pyro.models.decoders.normal import NormalDecoder

__all__ = [
    "BernoulliDecoder",
    "ContinuousBernoulliDecoder",
    "CrossEntropyBernoulli",
    "DictionaryDecoder",
    "NegativeBinomialDecoder",
    "NormalDecoder",
    "PoissonDecoder",
    "StableContinuousBernoulli",
]
