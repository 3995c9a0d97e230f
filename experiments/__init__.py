"""Commands, a module each; `python -m experiments.NAME --help` lists the flags of one."""
