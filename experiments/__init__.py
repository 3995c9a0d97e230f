"""Experiments of this repository, one module each; `python -m experiments.NAME --help` lists the flags."""
