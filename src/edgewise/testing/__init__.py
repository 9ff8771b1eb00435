"""Conformance kits and small models. They ship, so that a backend or pass made elsewhere can be held to the same."""
