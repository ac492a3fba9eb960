"""The arithmetic: one file for each way to train. The runner knows `base`, `registry`, and what needs no framework."""
