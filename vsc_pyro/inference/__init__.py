"""Posteriors better than the encoder's: exact, by sampling, refined, and of data with parts missing."""
