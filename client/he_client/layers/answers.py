"""What `hesearch advise` asks: who may be hostile, where data may go, sizes, latency, accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from he_engine.errors import InvalidInput
from he_engine.params import MAX_DIM


class Operator(Enum):
    """Of the server; also who has taken it over."""

    HONEST = "honest"  #: does not look, and answers right
    CURIOUS = "curious"  #: looks at all it has, and answers right
    HOSTILE = "hostile"  #: looks, and answers what it likes


class Network(Enum):
    MACHINE = "machine"  #: client and server are on one
    OPEN = "open"  #: others may listen and change


class Callers(Enum):
    ONE = "one"  #: everybody who reaches the server may do everything
    SEVERAL = "several"  #: tenants or roles that may not do the same


class Disk(Enum):
    SAFE = "safe"
    STOLEN = "stolen"  #: or a backup of it


class Scores(Enum):
    HOLDERS = "holders"  #: of the collection's key see them, and nobody else
    EVERYBODY = "everybody"


class Leaves(Enum):
    NOTHING = "nothing"
    PROTECTED = "protected"  #: ciphertexts, and what noise was added to
    RAW = "raw"


class Texts(Enum):
    PLAIN = "plain"  #: they name nobody, or there are none
    IDENTIFIERS = "identifiers"


class Vectors(Enum):
    HOLDERS = "holders"
    OTHERS = "others"  #: get vectors, or a model made of them
    SITES = "sites"  #: train one model together, and show each other no records


class Writers(Enum):
    HOLDERS = "holders"  #: every holder of the key may write
    LISTED = "listed"  #: some hold it to read only


class Engine(Enum):
    HINT = "hint"
    TENSEAL = "tenseal"  #: SEAL's textbook CKKS, for interoperability


def _asked(question: str) -> dict[str, Any]:
    """Metadata of a field: what is asked, and the help of its flag."""
    return {"question": question}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The defaults are the cautious ones of the profile `baseline`. Raises InvalidInput for numbers that make no
    sense."""

    operator: Operator = field(
        default=Operator.CURIOUS,
        metadata=_asked(
            "the server's operator, or who may take it over (curious: looks at all of it; hostile: lies, too)"
        ),
    )
    network: Network = field(
        default=Network.OPEN,
        metadata=_asked("between client and server (machine: both are on one; open: others may listen)"),
    )
    callers: Callers = field(
        default=Callers.ONE, metadata=_asked("callers (one: all may do everything; several: tenants or roles)")
    )
    disk: Disk = field(default=Disk.SAFE, metadata=_asked("the server's disk and its backups (stolen: they may be)"))
    scores: Scores = field(
        default=Scores.EVERYBODY, metadata=_asked("who may see scores, or hits in their order (holders: of the key)")
    )
    leaves: Leaves = field(
        default=Leaves.PROTECTED,
        metadata=_asked("what may leave your site (protected: ciphertexts, and what noise was added to)"),
    )
    texts: Texts = field(
        default=Texts.PLAIN, metadata=_asked("the texts that are embedded (identifiers: they name people)")
    )
    vectors: Vectors = field(
        default=Vectors.HOLDERS,
        metadata=_asked(
            "who gets vectors, or models trained on them (holders: of the key; sites: several train one model together)"
        ),
    )
    writers: Writers = field(
        default=Writers.HOLDERS,
        metadata=_asked("who may write (holders: everybody with the key; listed: some of them)"),
    )
    engine: Engine = field(
        default=Engine.HINT, metadata=_asked("the engine (tenseal: ciphertexts must be Microsoft SEAL's)")
    )
    rows: int | None = field(default=None, metadata=_asked("rows of the collection"))
    dim: int | None = field(default=None, metadata=_asked("vector dimension"))
    latency_ms: float | None = field(default=None, metadata=_asked("the most that a query may take, ms"))
    link_mbps: float = field(default=1000.0, metadata=_asked("between client and server, Mbit/s"))
    rtt_ms: float = field(default=1.0, metadata=_asked("round trip between client and server, ms"))
    recall: float | None = field(default=None, metadata=_asked("recall@10 beside the plaintext search, 0 to 1"))

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise InvalidInput(f"rows: got {self.rows}, expected at least 1")
        if self.dim is not None and not 1 <= self.dim <= MAX_DIM:
            raise InvalidInput(f"dim: got {self.dim}, expected 1 to {MAX_DIM}")
        if self.latency_ms is not None and not 0 < self.latency_ms < math.inf:
            raise InvalidInput(f"latency_ms: got {self.latency_ms:g}, expected more than 0")
        if self.latency_ms is not None and (self.rows is None or self.dim is None):
            raise InvalidInput("latency_ms: got it without rows and dim, which a query's time depends on")
        if not 0 < self.link_mbps < math.inf:
            raise InvalidInput(f"link_mbps: got {self.link_mbps:g}, expected more than 0")
        if not 0 <= self.rtt_ms < math.inf:
            raise InvalidInput(f"rtt_ms: got {self.rtt_ms:g}, expected at least 0")
        if self.recall is not None and not 0 <= self.recall <= 1:
            raise InvalidInput(f"recall: got {self.recall:g}, expected 0 to 1")

    @property
    def authenticated(self) -> bool:
        """Callers must say who they are, over TLS: the server serves loopback alone without it, to all the same."""
        return self.network is Network.OPEN or self.callers is Callers.SEVERAL


#: The fields whose values are those of an enumeration, in the order of the questions, and the others.
CHOICES = {one.name: type(one.default) for one in fields(Answers) if isinstance(one.default, Enum)}
NUMBERS = {
    one.name: (int if one.name in ("rows", "dim") else float) for one in fields(Answers) if one.name not in CHOICES
}
QUESTIONS = {one.name: str(one.metadata["question"]) for one in fields(Answers)}

PROFILES = {
    "baseline": Answers(),
    "regulated": Answers(
        callers=Callers.SEVERAL, disk=Disk.STOLEN, scores=Scores.HOLDERS, texts=Texts.IDENTIFIERS, recall=0.99
    ),
    "hostile-server": Answers(operator=Operator.HOSTILE),
}
