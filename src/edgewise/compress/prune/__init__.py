"""Pruning of exported graphs: neurons, layers and weights, each made up for in closed form."""
