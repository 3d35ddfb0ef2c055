"""Measures this project against other ways of doing the same; see `scripts/bench --help`."""
