"""A bare gRPC server of a process of its own: generic handlers, no protobuf. What the peers of our server run on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc


def run(
    service: str,
    handlers: Mapping[str, Any],
    *,
    workers: int,
    options: Sequence[tuple[str, int]] = (),
) -> int:
    """Serves the methods on a free port of loopback, prints "listening on 127.0.0.1:PORT", and ends with SIGTERM."""
    server = grpc.server(ThreadPoolExecutor(workers), options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, dict(handlers)),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    print(f"listening on 127.0.0.1:{port}", flush=True)
    stop.wait()
    server.stop(1).wait()
    return 0
