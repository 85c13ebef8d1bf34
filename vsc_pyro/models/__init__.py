"""The parts of a model: networks, encoders, decoders and priors, and the `VAE` that joins them."""
