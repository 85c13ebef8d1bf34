"""Shared by the examples: options, output folders, and how a script ends."""
