"""`hesearch certs dev`: certificates for trying TLS and access control out on one machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from he_engine.errors import InvalidInput
from he_server.access.dev_certificates import DAYS, make
from he_server.access.principals import Principal
from he_server.operate.parsers import verbs_of

_TEXT = f"make an authority, a server's certificate for this machine, and clients' certificates, good for {DAYS} days"
_EXAMPLES = """examples:
  hesearch certs dev ./certs --client acme/ada:writer,searcher --client acme/grace
  hesearch certs dev ./certs --client acme/edith      (one more, of the same authority)
  hesearch serve --data ./data --tls-cert certs/server.pem --tls-key certs/server.key --tls-client-ca certs/ca.pem
  hesearch info --server localhost:50051 --ca certs/ca.pem --cert certs/clients/acme/ada.pem \\
      --cert-key certs/clients/acme/ada.key

For development only: the authority's key, ca.key, is not encrypted, and whoever has it can call as anybody."""


def add_certs_parser(subparsers: Any) -> None:
    """Adds `certs dev` to what argparse's add_subparsers() returned. `run` of the namespace gives the exit code 0, and
    raises HesearchErrors."""
    text = "certificates for development"
    verbs = verbs_of(subparsers, "certs", text, "dev ./certs --client acme/ada:writer,searcher")
    parser = verbs.add_parser(
        "dev", help=_TEXT, description=_TEXT, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where to write them; nothing in it is overwritten")
    parser.add_argument(
        "--client",
        action="append",
        default=[],
        metavar="TENANT/NAME[:GROUP,…]",
        help="make a certificate for this principal; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=_dev)


def _dev(arguments: argparse.Namespace) -> int:
    made = make(arguments.folder, [_client(text) for text in arguments.client])
    files = [str(file) for file in made.files]
    if arguments.json:
        print(json.dumps({"files": files, "ends": made.ends.isoformat()}))
        return 0
    print("\n".join(f"wrote {file}" for file in files))
    print(f"For development only, until {made.ends:%Y-%m-%d}: whoever has ca.key can call as anybody.")
    return 0


def _client(text: str) -> Principal:
    who, colon, groups = text.partition(":")
    tenant, slash, name = who.partition("/")
    listed = groups.split(",") if colon else []
    if not slash or len(set(listed)) != len(listed):
        raise InvalidInput("client: expected TENANT/NAME or TENANT/NAME:GROUP,GROUP, each group once")
    return Principal(name, tenant, frozenset(listed), "certificate")
