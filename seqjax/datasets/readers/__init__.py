"""Readers of files, a format each."""
