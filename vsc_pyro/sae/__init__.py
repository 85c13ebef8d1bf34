r"""Sparse autoencoders: export a model to the files of other programs, and read theirs.

`export` writes a folder in the format of SAELens (Bloom et al., 2024): ``cfg.json`` with sizes and architecture,
``sae_weights.safetensors`` with weights, and beside them ``posterior.safetensors``, from which `load` rebuilds the
posterior. A model whose hard code is a JumpReLU of one linear pre-activation is written as such and opens in SAELens:

.. math:: z = u \;\text{where}\; u > \theta, \;\text{else}\; 0, \qquad u = (x - b_{dec}) W_{enc} + b_{enc}, \qquad
    \hat x = z W_{dec} + b_{dec}.

Files are read without pickle and cannot run code. Both functions need the package safetensors:
``pip install "vsc-pyro[sae]"``.

References
    J. Bloom, C. Tigges, A. Duong, D. Chanin (2024), SAELens.
    S. Rajamanoharan et al. (2024), Jumping ahead: improving reconstruction fidelity with JumpReLU sparse autoencoders.
"""

from vsc_pyro.sae.autoencoder import Config, PosteriorAutoencoder, SparseAutoencoder
from vsc_pyro.sae.export import export
from vsc_pyro.sae.load import load

__all__ = ["Config", "PosteriorAutoencoder", "SparseAutoencoder", "export", "load"]
