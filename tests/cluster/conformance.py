"""The SDK's tests that have a server of their own, with servers whose answers are computed by Ray on so many nodes.

python -m tests.loopback python -m tests.cluster.conformance NODES
"""

from __future__ import annotations

import os
import sys

import pytest

from tests.cluster_fixture import Nodes
from tests.cluster_settings import ADDRESS, SHARDS

TESTS = ("tests/test_sdk.py", "tests/test_upsert.py", "tests/test_compaction.py")


def main(nodes: int) -> int:
    with Nodes(nodes) as started:
        os.environ.update({ADDRESS: started.address, SHARDS: str(nodes)})
        return int(pytest.main(["-p", "no:cacheprovider", "-k", "grpc or two_writers", *TESTS]))


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1])))
