"""What is observed of a call: its method, its sizes, its times, how it ended. Nothing that it carries, nor who calls.

`step` may stand around any part of a call's work; outside of a call, and where nobody observes, it does nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a call's work."""

    name: str
    began_ns: int  #: Unix time
    seconds: float


@dataclass(slots=True, eq=False)
class Call:
    """One call, from its arrival to the last byte that was made for it."""

    method: str  #: of the .proto; "unknown" for one that is not there
    request_id: str  #: 32 hexadecimal digits
    trace: dict[str, str]  #: the caller's W3C `traceparent` and `tracestate`, where it sent them
    began_ns: int = field(default_factory=time.time_ns)  #: Unix time
    received_bytes: int = 0  #: messages as they were sent, without gRPC's framing
    sent_bytes: int = 0
    steps: list[Step] = field(default_factory=list)
    code: str = ""  #: name of the status code; empty while it runs
    reason: str = ""  #: name of the error's class, where it is one of ours
    seconds: float = 0.0
    _began: float = field(default_factory=time.perf_counter)

    def end(self, code: str, reason: str = "") -> None:
        self.code, self.reason = code, reason
        self.seconds = time.perf_counter() - self._began


class Observer(Protocol):
    """Told of every call. Thread-safe; raises nothing."""

    def began(self, call: Call) -> None:
        """It has arrived."""

    def ended(self, call: Call) -> None:
        """It has `code`, `reason` and `seconds` now. Comes once for each that began."""


current: ContextVar[Call | None] = ContextVar("current call", default=None)


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """`name`: one of a few fixed words, never anything of a request."""
    call = current.get()
    if call is None:
        yield
        return
    began_ns, began = time.time_ns(), time.perf_counter()
    try:
        yield
    finally:
        call.steps.append(Step(name, began_ns, time.perf_counter() - began))
