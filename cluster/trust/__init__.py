"""Whether a reward can be trusted for a task, tried before a run: `restorl reward check`."""
