"""`hesearch serve` without layers that its command line cannot leave out: who calls, and what they may do.

    python -m benchmarks.layer_server --without identity policies --data FOLDER …

All else is as the other flags say, which are those of `hesearch serve`. Without `identity` every caller counts as this
machine's, whatever certificate it shows; without `policies` each may do everything in its own tenant.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from unittest.mock import patch

import grpc

from he_server import cli
from he_server.access.access import Access
from he_server.access.authentication import Authentication
from he_server.access.opening import open_access
from he_server.access.principals import LOOPBACK, Principal
from he_server.config import ServerConfig

LAYERS = ("identity", "policies")


class _Anybody(Authentication):
    """Asks nobody who they are."""

    def principal(self, context: grpc.ServicerContext) -> Principal:
        del context
        return LOOPBACK


def without(layers: Collection[str], config: ServerConfig) -> Access:
    """As the server is configured, but for these layers. Raises as `open_access`."""
    access = open_access(config)
    if "identity" in layers:
        access.authentication = _Anybody()
    if "policies" in layers:
        access.policies = None
    return access


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layer_server", description=__doc__, allow_abbrev=False)
    parser.add_argument("--without", nargs="*", choices=LAYERS, default=(), help="layers that are left out")
    arguments, flags = parser.parse_known_args()
    with patch.object(cli, "open_access", lambda config: without(arguments.without, config)):
        return cli.main(flags)


if __name__ == "__main__":
    raise SystemExit(main())
