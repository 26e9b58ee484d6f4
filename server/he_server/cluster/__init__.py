"""Answers computed by actors on Ray, each of which holds a part of the index in its memory: see docs/cluster.md."""
