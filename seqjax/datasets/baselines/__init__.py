"""Baselines, a kind of dataset each."""
