"""Training by stochastic variational inference: `fit` and its parts."""
