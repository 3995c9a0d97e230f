"""Baseline models, one module for each kind of dataset."""
