"""Experiments: their specification, the networks trained for them, the cells and tasks that are carried out."""
