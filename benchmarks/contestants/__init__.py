"""Those that are measured. To add one: a module here with a subclass of Contestant, and a line in `drain.CONTESTANTS`.

A contestant of another environment (PyPI, npm) has its worker as a script in `benchmarks/peers`.
"""
