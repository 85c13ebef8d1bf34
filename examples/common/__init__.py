"""Helpers that the examples share: options, data, output folders and files, and how a script ends."""
