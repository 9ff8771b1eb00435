"""Runs a bundle: samples in, answers out."""
