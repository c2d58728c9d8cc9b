"""Ready files that start a run on a cluster (KubeRay, `ray up`, Slurm), from a recipe and what there is to run on."""
