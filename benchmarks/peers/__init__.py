"""The tools that edgewise is measured beside, each at its documented best."""
