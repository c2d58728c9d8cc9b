"""How many GPUs each role of a run should take, and what an iteration takes then: a cost model, without a cluster."""
