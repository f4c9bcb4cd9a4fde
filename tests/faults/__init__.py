"""Faults under load, and ledgers that account for every job: `python -m tests.faults --help`."""
