"""The options of `hesearch demo`. Imports nothing heavy: every `hesearch` command builds this parser."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from he_client.commands.argument_types import whole
from he_client.demo.choices import ENCODERS, QUESTIONS
from he_engine.errors import InvalidInput
from he_engine.params import Profile

TEXT = "a private search over 98,505 real diagnoses, encrypted, beside the same search in plaintext"


def add_demo_parser(subparsers: Any) -> None:
    """Add `demo` to the subcommands of `hesearch`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        help=TEXT,
        description=TEXT[0].upper() + TEXT[1:] + ".",
        epilog='example:\n  hesearch demo --query "woke up with a stiff neck"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    configure(parser)


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--query", action="append", metavar="TEXT", default=[],
        help=f"ask this instead of the {len(QUESTIONS)} built-in questions; may be repeated",
    )  # fmt: skip
    add("-k", type=whole, default=5, metavar="K", help="hits to print for each question (default 5)")
    add("--rows", type=whole, metavar="N", help="only N of the 98,505 diagnoses, spread over all chapters")
    add("--profile", choices=[p.value for p in Profile], default=Profile.EXACT.value, help="default: exact")
    add(
        "--encoder", choices=ENCODERS, default=ENCODERS[0],
        help="text to vectors. minilm answers better but needs PyTorch (pip install '.[minilm]') and "
        "reads a few hundred titles a second: add --rows 10000",
    )  # fmt: skip
    add("--threads", type=whole, default=len(os.sched_getaffinity(0)), metavar="T", help="default: all cores")
    add("--json", type=Path, metavar="FILE", help="also write what was measured (keys: he_client/demo/record.py)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from he_client.demo.run import DemoOptions, run_demo

    path: Path | None = arguments.json
    if path is not None and not path.absolute().parent.is_dir():
        raise InvalidInput(f"--json: there is no folder {path.absolute().parent}")
    record = run_demo(
        DemoOptions(
            questions=tuple(arguments.query) or QUESTIONS,
            shown=arguments.k,
            rows=arguments.rows,
            profile=arguments.profile,
            encoder=arguments.encoder,
            threads=arguments.threads,
        )
    )
    if path is not None:
        record.save(path)
        print(f"Written: {path}")
    return 0
