"""The address to listen on, and whether it may be: plaintext on loopback only."""

from __future__ import annotations

import ipaddress
import re
import socket

from he_engine.errors import InvalidInput, Unavailable
from he_server.config import ServerConfig


def split_address(listen: str) -> tuple[str, int]:
    """(host, port) of "host:port" or "[v6]:port". Raises InvalidInput."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+):(\d{1,5})", listen)
    if match is None or int(match[2]) > 65535:
        raise InvalidInput(f"listen: got {listen!r}, expected host:port, for example 127.0.0.1:50051")
    return match[1].strip("[]"), int(match[2])


def require_listenable(config: ServerConfig) -> None:
    """Raises InvalidInput unless there is a certificate, or plaintext is wanted and every address of the host is this
    machine's own."""
    host, port = split_address(config.listen)
    if config.tls_cert:
        return
    if not config.insecure:
        raise InvalidInput(
            "tls_cert, tls_key: got none; give --tls-cert and --tls-key, or --insecure to serve plaintext on loopback"
        )
    if not is_loopback(host, port):
        raise InvalidInput(
            f"listen: got {host!r}, but plaintext (--insecure) is served on loopback only: 127.0.0.1 or ::1"
        )


def is_loopback(host: str, port: int) -> bool:
    """Whether every address of the host is this machine's own. Raises InvalidInput for a host that has none."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError:
        raise InvalidInput(f"listen: the host {host!r} has no address") from None
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def require_free(listen: str) -> None:
    """Raises Unavailable unless this process could listen there now, InvalidInput for what is no address."""
    host, port = split_address(listen)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError:
        raise taken(listen) from None


def taken(listen: str) -> Unavailable:
    return Unavailable(f"listen: {listen} is taken, or not an address of this machine")
