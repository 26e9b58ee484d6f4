"""Numbers and addresses on the command line: each function is an argparse `type`, which says what was got and expected,
or adds an option that several commands have."""

from __future__ import annotations

import argparse
import math
import os


def address(text: str) -> str:
    """host:port."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected host:port (127.0.0.1:50051)")
    return text


def whole(text: str) -> int:
    """An integer ≥ 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return value


def positive(text: str) -> float:
    """A finite number > 0."""
    value = not_negative(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")
    return value


def not_negative(text: str) -> float:
    """A finite number ≥ 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number, not negative")
    return value


def add_threads(options: argparse._ActionsContainer) -> None:
    """--threads, of a server that is this machine, in a parser or a group of one."""
    options.add_argument(
        "--threads", type=whole, default=len(os.sched_getaffinity(0)), metavar="T",
        help="of the server, were it this machine (default: all cores)",
    )  # fmt: skip
