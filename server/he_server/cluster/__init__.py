"""Answers computed by actors on Ray, each of which holds a part of the index in its memory: see docs/cluster.md."""

import os

os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a call without a connection is an error; it starts no Ray of its own
