"""A collector of traces, for servers under a benchmark: takes OTLP over gRPC, and keeps nothing of it.

`python -m benchmarks.collector` prints `listening on ADDRESS`, and serves until it is terminated.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc

EXPORT = "Export"
SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


def main() -> int:
    export = grpc.unary_unary_rpc_method_handler(lambda request, _: request[:0])  # an empty response
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {EXPORT: export}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    server.wait_for_termination()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
