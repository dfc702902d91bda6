"""Demonstration and measurements: they drive a real cluster through the public client alone."""
