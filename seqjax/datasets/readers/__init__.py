"""Readers of data files, one module for each file format, and their helper modules."""
