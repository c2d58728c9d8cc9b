"""Ready files that start a run on a cluster: for KubeRay, `ray up` and Slurm, from a recipe and what there is to run on."""
