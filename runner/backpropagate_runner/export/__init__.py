"""The stages of an export: what a child does after a training, or instead of one. Each file is one stage or one of its tools."""
