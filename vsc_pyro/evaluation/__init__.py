"""What a model is worth: bounds, sparsity, codes, probes, calibration, and advice."""
