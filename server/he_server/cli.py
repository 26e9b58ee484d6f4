"""`hesearch serve`: one data folder on one address, until a signal says stop."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from he_engine.errors import HesearchError
from he_proto.wire import FORMAT_VERSION
from he_server.access.opening import open_access, reloaders
from he_server.config_file import add_flags, make_config, to_toml
from he_server.observe import logs
from he_server.observe.observing import Observing
from he_server.rpc.grpc_server import GrpcServer
from he_server.rpc.listening import require_free, require_listenable
from he_server.rpc.reload import reload
from he_server.rpc.tls import require_tls_1_3
from he_server.search.warming import Warmer
from he_server.service import Service
from he_server.storage.upkeep import Upkeep

_TEXT = "serve a folder of encrypted collections; the server holds no key and can decrypt nothing"
_EXAMPLES = """examples:
  hesearch serve --data ./data --listen 127.0.0.1:50051 --insecure
  hesearch serve --data ./data --listen 127.0.0.1:0 --insecure --json    (a free port, named on stdout)
  hesearch serve --data /srv/hesearch --listen 0.0.0.0:50051 --tls-cert server.pem --tls-key server.key \\
    --tls-client-ca clients.pem --policies /etc/hesearch/policies
  hesearch serve --data /srv/hesearch --print-config > hesearch.toml     (every setting, with what it means)
  hesearch serve --config hesearch.toml --threads 8                      (flags come before the file)

Once it serves, it prints one line, `listening on HOST:PORT`, reads all indexes into memory and says on stderr how long
that took. SIGTERM or SIGINT end it: no new calls, running ones get --grace seconds, then it exits with 0. SIGHUP lets
it read its certificate, policies, quotas and token keys again. Without TLS (--insecure) it serves on loopback only."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML with any of the settings below")
    parser.add_argument("--print-config", action="store_true", help="print all settings as such a file, and end")
    parser.add_argument("--json", action="store_true", help='print {"listening": "HOST:PORT", …} instead')
    add_flags(parser)
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


def _handle_signals() -> None:
    """Once more after Ray was started, whose handler writes a stack first, as if this were a crash."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)


def _signals() -> Callable[[], int]:
    """From now on SIGTERM, SIGINT and SIGHUP do nothing but end a call of what is returned, with their number.

    The interpreter's C handler writes their numbers to a pipe. A Python handler would not do: it runs only when
    this thread next executes Python, and a signal that another thread received does not wake it.
    """
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    _handle_signals()
    return lambda: os.read(told, 1)[0]


def _admit_open_files() -> None:
    """As many as this process may ever have: each connection and each worker process takes one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # then the old limit stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def serve(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT; 0 then, 1 where it could not start (with the reason on stderr)."""
    try:
        config = make_config(arguments.config, vars(arguments))
        if arguments.print_config:
            print(to_toml(config), end="")
            return 0
        logs.configure(config)
        require_listenable(config)  # before the folder is made
        require_free(config.listen)
        if config.tls_cert:
            require_tls_1_3()
        _admit_open_files()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the keys of the disk
        next_signal = _signals()
        with Observing(config) as observing, Service(config, observing.engine_maker, open_access) as service:
            _handle_signals()
            server = GrpcServer(service, observing.interceptors)
            metrics = observing.serve_metrics(service)
            sources = reloaders(service.access, config)
            if server.certificates:
                sources["certificates"] = server.certificates.reload
            ready = {"listening": server.address, "metrics": metrics, "format_version": FORMAT_VERSION}
            told = [f"listening on {server.address}", *([f"metrics on {metrics}"] if metrics else [])]
            print(json.dumps(ready) if arguments.json else "\n".join(told), flush=True)
            with Warmer(service), Upkeep(service.store, config.data_key_days):
                while next_signal() == signal.SIGHUP:
                    reload(sources)
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
