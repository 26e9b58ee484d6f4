"""What is fuzzed: one parser, samples that it takes, and how they are changed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.mutate import Mutate

CORPUS = Path(__file__).parent / "corpus"  #: inputs that once failed, a folder for each target


def scratch() -> Path:
    """A folder in memory where there is one."""
    return Path(tempfile.mkdtemp(prefix="hesearch-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def nothing() -> None:
    """A target without anything to close."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """`run(data)` hands bytes to a parser, and returns whether it took them. It raises only what is a failure: whatever
    the parser raises for bad input is a HesearchError, and is caught in `run`'s caller.

    repair: makes the checksums of a changed input right again (or nearly), so that what lies behind them is reached.
    limit_bytes: what the parser may hold in memory for one input, by what it declares; twice that fails.
    cost: of an input, in tenths of a millisecond or so: the test suite gives expensive targets fewer.
    """

    name: str
    run: Callable[[bytes], None]
    samples: list[bytes]
    mutate: Mutate
    limit_bytes: int
    cost: int = 1
    repair: Callable[[bytes], bytes] | None = None
    close: Callable[[], None] = field(default=nothing)

    @property
    def corpus(self) -> list[bytes]:
        """The samples, and the inputs that once failed."""
        return [*self.samples, *(path.read_bytes() for path in sorted((CORPUS / self.name).glob("*")))]
