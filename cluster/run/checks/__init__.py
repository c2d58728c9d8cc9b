"""What can be known before a run starts, by subject; `cluster.run.preflight` asks them all."""
