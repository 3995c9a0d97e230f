"""Baselines, one module for each kind of dataset."""
