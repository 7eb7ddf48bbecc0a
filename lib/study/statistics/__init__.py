"""Intervals, tests and verdicts, on the tables of results."""
