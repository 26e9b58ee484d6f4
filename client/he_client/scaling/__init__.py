"""Collections beyond one machine, before there are any: a model of a cluster, and a simulation of it."""
