"""Draws a finished run: one HTML file that opens offline, and a few lines of text. It reads records and nothing else."""
