"""What is run: one module a study. Importing one defines no flag; `python -m experiments.NAME --help` lists its own."""
