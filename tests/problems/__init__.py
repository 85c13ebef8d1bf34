"""Models and data that more than one test file uses."""
