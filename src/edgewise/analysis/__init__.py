"""Facts about a model: it is read here, never written."""
