"""A function in a child process of its own, which it may end, and its result."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
HANG_S = 60  #: a run that takes longer hangs


@dataclass(frozen=True, slots=True)
class Died:
    """The child ended without a result. `signal` 0: it failed, `text` says how."""

    signal: int
    text: str

    def __str__(self) -> str:
        if self.signal == signal.SIGALRM:
            return f"no end after {HANG_S} s"
        return f"ended by signal {self.signal}" if self.signal else self.text


def forked(function: Callable[[], T]) -> T | Died:
    """Only from a process with one thread. `function` returns something to pickle."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        _run(function, sending)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        raw = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return Died(os.WTERMSIG(status), "")
    result: T | Died = pickle.loads(raw) if raw else Died(0, f"exit status {os.WEXITSTATUS(status)}")
    return result


def _run(function: Callable[[], object], sending: int) -> None:
    logging.disable()  # a server that finds damage says so
    signal.alarm(HANG_S)
    try:
        result = function()
    except BaseException:
        result = Died(0, traceback.format_exc())
    try:
        with os.fdopen(sending, "wb") as pipe:
            pickle.dump(result, pipe)
    finally:
        os._exit(0)
