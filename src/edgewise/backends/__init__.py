"""Runtimes: each compiles a graph into an artifact and opens artifacts as sessions. They do not know each other."""
