"""The arithmetic: one file for each way to train. Only `registry` and `base` may be imported by the runner."""
