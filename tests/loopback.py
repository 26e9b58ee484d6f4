"""Runs a command where there is no network but loopback, and ends what it started with it.

    python -m tests.loopback COMMAND ...

Ray may listen on a machine's other addresses whatever it is told. In a network namespace of its own there are none; in
a process namespace of its own, its daemons end with the command. Needs root, or user namespaces.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence

_INSIDE = "--inside"
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1


def inside(command: Sequence[str]) -> list[str]:
    """The command that runs another one there."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    unshare = ["unshare", *user, "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return [*unshare, sys.executable, "-m", "tests.loopback", _INSIDE, *command]


def possible() -> bool:
    """Whether this machine lets us."""
    try:
        return not subprocess.run(inside(["true"]), capture_output=True, timeout=60).returncode
    except FileNotFoundError:
        return False


def main(command: Sequence[str]) -> None:
    if command[0] != _INSIDE:
        command = inside(command)
        os.execvp(command[0], command)
    command = command[1:]
    with socket.socket() as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
