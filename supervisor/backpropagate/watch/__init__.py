"""Those who watch a run: terminal, log lines, notebook. They get events and never stop a run."""
