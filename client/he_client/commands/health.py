"""`hesearch health`: whether a server serves now, by gRPC's health check. For container and service managers."""

from __future__ import annotations

import argparse

import grpc

from he_client.commands.argument_types import address, positive
from he_client.commands.common import Subparsers, add_command, add_security, report
from he_client.transport import Security

_METHOD = "/grpc.health.v1.Health/Check"
_SERVICE = b"hesearch.v1.HeSearch"
_REQUEST = bytes([0x0A, len(_SERVICE)]) + _SERVICE  #: HealthCheckRequest(service=…)
_NO_ANSWER = grpc.StatusCode.UNAVAILABLE.name
_SERVING = b"\x08\x01"  #: HealthCheckResponse(status=SERVING)


def add_health(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "health",
        _health,
        "whether a server serves: exit code 0 if so, else 1",
        "127.0.0.1:50051 --insecure",
    )
    parser.add_argument("target", type=address, metavar="HOST:PORT")
    parser.add_argument("--timeout", type=positive, default=5.0, metavar="SECONDS", help="default: %(default)s")
    add_security(parser)


def _health(arguments: argparse.Namespace) -> int:
    reason = check(
        arguments.target,
        Security(insecure=arguments.insecure, ca=arguments.ca, cert=arguments.cert, key=arguments.cert_key),
        arguments.timeout,
    )
    hint = " (it does not run, or it wants other --ca, --cert or --insecure)" if reason == _NO_ANSWER else ""
    text = f"not serving: {reason}{hint}" if reason else "serving"
    report(arguments, {"serving": not reason, "reason": reason}, text)
    return 1 if reason else 0


def check(target: str, security: Security, timeout_s: float) -> str:
    """Why the server at `target` does not serve; empty if it does. Raises InvalidInput (a file of `security`)."""
    with security.channel(target) as channel:
        try:
            status: bytes = channel.unary_unary(_METHOD, bytes, bytes)(_REQUEST, timeout=timeout_s)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "" if status == _SERVING else "NOT_SERVING"
