"""The Python face: Trainer, what it gives back, and how it follows the run's own process."""
