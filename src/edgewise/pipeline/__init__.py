"""Joins the layers below into the jobs that users ask for: optimize, quantize, bench, evaluate, compare, export."""
