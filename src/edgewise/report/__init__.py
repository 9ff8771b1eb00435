"""Draws a finished run from its record alone: one HTML file that opens offline, and a few lines of text."""
