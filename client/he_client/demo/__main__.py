"""`python -m he_client.demo`: the same as `hesearch demo`."""

import sys

from he_client.cli import main

raise SystemExit(main(["demo", *sys.argv[1:]]))
