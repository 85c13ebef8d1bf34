"""Posteriors as ArviZ objects, and model checks by ArviZ."""
