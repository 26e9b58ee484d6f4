"""Flower's rounds in one process, without its simulation extra (which brings Ray): clients called where they are.

The server, its strategies and its clients are Flower's own; only the connection is a function call.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from flwr.client import Client
from flwr.common import Parameters
from flwr.server import Server, SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Strategy


class InProcess(ClientProxy):
    """A client that is an object here; counts the bytes of parameters both ways."""

    def __init__(self, name: str, client: Client) -> None:
        super().__init__(name)
        self._client = client
        self.sent_bytes = self.received_bytes = 0

    def fit(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        del timeout, group_id
        self.received_bytes += _bytes(ins.parameters)
        result = self._client.fit(ins)
        self.sent_bytes += _bytes(result.parameters)
        return result

    def evaluate(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        del timeout, group_id
        self.received_bytes += _bytes(ins.parameters)
        return self._client.evaluate(ins)

    def get_properties(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        raise NotImplementedError

    def get_parameters(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        raise NotImplementedError

    def reconnect(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        raise NotImplementedError


def run(strategy: Strategy, clients: Sequence[Client], rounds: int) -> tuple[Server, dict[str, float]]:
    """(the server afterwards, seconds and bytes a client and round)."""
    manager = SimpleClientManager()
    proxies = [InProcess(str(number), client) for number, client in enumerate(clients)]
    for proxy in proxies:
        manager.register(proxy)
    server = Server(client_manager=manager, strategy=strategy)
    server.set_max_workers(1)
    start = time.perf_counter()
    server.fit(rounds, timeout=None)
    seconds = time.perf_counter() - start
    exchanges = len(clients) * rounds
    return server, {
        "seconds_a_round": seconds / rounds,
        "bytes_up": sum(proxy.sent_bytes for proxy in proxies) / exchanges,
        "bytes_down": sum(proxy.received_bytes for proxy in proxies) / exchanges,
    }


def _bytes(parameters: Parameters) -> int:
    return sum(len(tensor) for tensor in parameters.tensors)
