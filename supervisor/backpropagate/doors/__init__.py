"""Doors: where the parent touches processes and the environment, each in one place."""
