"""The checks of the approximation theorem: flows, problems, a network of its own."""
