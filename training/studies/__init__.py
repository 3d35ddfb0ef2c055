"""Comparisons of recipes and cells, whose tables stand in docs/."""
