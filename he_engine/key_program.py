"""A program that wraps keys, in place of a key management service: the same convention for the server and for clients.

It gets the word wrap or unwrap as its argument and one line of hexadecimal on its input, and gives one line of
hexadecimal. It wraps key ‖ context, so that it need not know of contexts.
"""

from __future__ import annotations

import subprocess

from he_engine.errors import Unavailable, WrongKeyError
from he_engine.keys import KEY_BYTES

_WAIT_S = 60.0


class KeyProgram:
    """`what` comes first in the messages of its errors."""

    def __init__(self, program: str, what: str) -> None:
        self._program = program
        self._what = what

    def wrap(self, key: bytes | bytearray, context: bytes) -> bytes:
        """Raises Unavailable where the program fails."""
        return self._ask("wrap", bytes(key) + context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """The 32 bytes. Raises Unavailable; WrongKeyError where what comes back is not of this context."""
        opened = self._ask("unwrap", wrapped)
        if len(opened) != KEY_BYTES + len(context) or opened[KEY_BYTES:] != context:
            raise WrongKeyError(f"{self._what}: {self._program} unwrapped something else than was wrapped here")
        return opened[:KEY_BYTES]

    def _ask(self, verb: str, data: bytes) -> bytes:
        command = f"{self._what}: {self._program} {verb}"
        try:
            done = subprocess.run(
                [self._program, verb], input=data.hex().encode() + b"\n", stdout=subprocess.PIPE, timeout=_WAIT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{command}: {type(error).__name__}") from None
        if done.returncode:
            raise Unavailable(f"{command} ended with {done.returncode}; its own message is above")
        try:
            return bytes.fromhex(done.stdout.decode("ascii"))
        except ValueError:
            raise Unavailable(f"{command} gave something else than hexadecimal") from None
