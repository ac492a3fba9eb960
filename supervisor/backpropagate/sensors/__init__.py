"""The GPU as seen from outside: NVML in a helper process, a scripted card for drills, and what follows for a run."""
