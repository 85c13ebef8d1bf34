"""Posteriors better than the encoder's: exact, sampled, refined, and given incomplete data."""
