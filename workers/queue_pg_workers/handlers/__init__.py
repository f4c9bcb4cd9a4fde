"""Kinds that every worker can run."""
