"""Benchmarks of queue-pg against a raw loop and its peers: `python -m benchmarks --list`."""
