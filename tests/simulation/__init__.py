"""Many workers and applications in one thread, by a clock and a chance of its own: `python -m tests.simulation -h`."""
