"""The measures, each a module with NAME, TITLE, METHOD, METRICS, TARGETS and `run(bench) -> Record`."""
