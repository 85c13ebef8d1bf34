"""Training by stochastic variational inference: `fit`, and all that it needs."""
