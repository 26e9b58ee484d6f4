"""Real servers for tests of the SDK: in process, or over gRPC on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from he_client import Client
from he_server.config import ServerConfig
from he_server.rpc.grpc_server import GrpcServer
from he_server.service import Service
from tests.cluster_settings import cluster


@contextmanager
def grpc_address(folder: Path) -> Iterator[str]:
    """host:port of a server of `folder` in this process, which refuses nobody."""
    config = ServerConfig(data=folder, listen="127.0.0.1:0", insecure=True, max_scans=64, **{"threads": 2, **cluster()})
    with Service(config) as service:
        server = GrpcServer(service)
        try:
            yield server.address
        finally:
            server.stop(1.0)


@contextmanager
def connect(kind: str, folder: Path) -> Iterator[Client]:
    """A client of a new server. kind: "memory", "folder" or "grpc"."""
    if kind == "grpc":
        with grpc_address(folder) as address, Client(address, insecure=True) as client:
            yield client
    else:
        with Client(":memory:" if kind == "memory" else folder) as client:
            yield client
