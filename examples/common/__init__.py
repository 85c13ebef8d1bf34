"""Helpers that the examples share: options, data, output folders, files, and error messages."""
