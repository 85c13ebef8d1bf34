"""Measures of a trained model: bounds, sparsity, codes, probes, calibration, and advice."""
