"""`hesearch serve`: one data folder on one address, until a signal says stop."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from he_engine.errors import HesearchError
from he_proto.wire import FORMAT_VERSION
from he_server.config import ServerConfig
from he_server.grpc_server import GrpcServer, require_loopback
from he_server.service import Service
from he_server.warming import Warmer

_TEXT = "serve a folder of encrypted collections; the server holds no key and can decrypt nothing"
_EXAMPLES = """examples:
  hesearch serve --data /var/lib/hesearch --listen 127.0.0.1:50051 --insecure
  hesearch serve --data ./data --listen 127.0.0.1:0 --insecure --json    (a free port, named on stdout)

Once it serves, it prints one line, `listening on HOST:PORT`, reads all indexes into memory and says on stderr how long
that took. SIGTERM or SIGINT end it: running calls get --grace seconds, then it exits with 0.
Until TLS is there, it serves on loopback only (--insecure)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="the data folder; made if missing")
    parser.add_argument("--listen", default="127.0.0.1:50051", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--insecure", action="store_true", help="serve without TLS, on loopback only")
    parser.add_argument("--threads", type=int, metavar="T", help="that compute answers; default: all cores")
    parser.add_argument(
        "--grace",
        type=float,
        default=10.0,
        metavar="S",
        help="seconds that running calls get at the end; default: %(default)s",
    )
    parser.add_argument("--json", action="store_true", help='print {"listening": "HOST:PORT", …} instead')
    parser.set_defaults(run=serve)


def add_serve_parser(subparsers: Any) -> None:
    """Adds `serve` to what argparse's add_subparsers() returned; `run` in the namespace is `serve`."""
    add_arguments(
        subparsers.add_parser(
            "serve",
            help=_TEXT,
            description=_TEXT,
            epilog=_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )


def _stop_signals() -> Callable[[], object]:
    """From now on SIGTERM and SIGINT do nothing but end a call of what is returned.

    The interpreter's C handler writes their numbers to a pipe. A Python handler would not do: it runs only when
    this thread next executes Python, and a signal that another thread received does not wake it.
    """
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return lambda: os.read(told, 1)


def _admit_open_files() -> None:
    """As many as this process may ever have: each connection and each worker process takes one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # then the old limit stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def serve(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT; 0 then, 1 where it could not start (with the reason on stderr)."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        threads = {} if arguments.threads is None else {"threads": arguments.threads}
        config = ServerConfig(
            data=arguments.data,
            listen=arguments.listen,
            insecure=arguments.insecure,
            grace_s=arguments.grace,
            **threads,
        )
        require_loopback(config.listen, insecure=config.insecure)  # before the folder is made
        _admit_open_files()
        wait_for_stop = _stop_signals()
        with Service(config) as service:
            server = GrpcServer(service)
            ready = {"listening": server.address, "format_version": FORMAT_VERSION}
            print(json.dumps(ready) if arguments.json else f"listening on {server.address}", flush=True)
            with Warmer(service):
                wait_for_stop()
            server.stop(config.grace_s)
    except HesearchError as error:
        print(f"hesearch serve: {error}", file=sys.stderr)
        return 1
    return 0


def main(argv: list[str] | None = None) -> int:
    """`python -m he_server`, for machines that have the server alone."""
    parser = argparse.ArgumentParser(
        "he_server", description=_TEXT, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return serve(parser.parse_args(argv))
