"""What a user builds: networks, encoders, decoders, priors, and the `VAE` of them."""
