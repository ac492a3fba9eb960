"""Driving: one run from its spec to its end, its children started, heard, judged and replaced."""
