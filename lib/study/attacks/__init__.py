"""Attacks and corruptions: what moves an image, and within which ball."""
