"""Measurements of speed and memory, never run as tests: `python -m tools.bench --help`."""
