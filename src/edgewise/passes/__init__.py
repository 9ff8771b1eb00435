"""Rewrites that keep the function: same model, better graph. Standard-domain operators only."""
