"""Makes models smaller and faster at a bounded loss: plans decide, `apply` does. Never runs a model itself."""
