"""Where servers of this run have their answers computed: here, or on the Ray that the environment names."""

from __future__ import annotations

import os
from typing import Any

ADDRESS, SHARDS = "HESEARCH_TEST_CLUSTER", "HESEARCH_TEST_SHARDS"


def cluster() -> dict[str, Any]:
    """Settings of a ServerConfig."""
    if not (address := os.environ.get(ADDRESS)):
        return {}
    return {"cluster": address, "cluster_shards": int(os.environ[SHARDS]), "threads": 1}
