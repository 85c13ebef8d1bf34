"""Posteriors for ArviZ, and what it computes of them."""
