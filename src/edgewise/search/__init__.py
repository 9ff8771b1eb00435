"""Choosing among candidates: fronts, ladders, budgets. Pure functions on numbers that know no models."""
