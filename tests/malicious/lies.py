"""The lies, by name: what each is about, and the errors that may come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from he_engine.errors import HesearchError
from he_proto.v1 import hesearch_pb2 as pb
from tests.malicious.server import Tell


@dataclass(frozen=True)
class Lie:
    """`scene`: what the client does meanwhile (tests.malicious.scenes). `errors`: those that are the right reaction.

    `harmless`: it may also have no effect, so that the results are the honest ones. `everything`: every call is lied
    about, from the first one; `lasting`: from a random one on. Else one is, or that and all later ones.
    """

    name: str
    scene: str
    method: str  #: empty: any
    tell: Tell
    errors: tuple[type[HesearchError], ...]
    harmless: bool = False
    part: pb.PartKind | None = None  #: of ReadSegmentPart
    everything: bool = False
    lasting: bool = False
    hasty: bool = False  #: with a deadline of a fraction of a second

    @property
    def of_residues(self) -> bool:
        """Whether every piece of a single query's answer is in place, and its numbers are wrong: all are verified
        together, so none may be decrypted."""
        return self.scene == "search" and self.tell.__module__ in (
            "tests.malicious.answers",
            "tests.malicious.misplaced",
        )

    def concerns(self, method: str, request: Any) -> bool:
        if self.method and method != self.method:
            return False
        return self.part is None or (method == "ReadSegmentPart" and request.kind == self.part)


LIES: dict[str, Lie] = {}


def lie(name: str, scene: str, method: str, *errors: type[HesearchError], **fields: Any) -> Callable[[Tell], Tell]:
    """Registers a lie; a function may serve several."""

    def register(tell: Tell) -> Tell:
        assert name not in LIES
        LIES[name] = Lie(name, scene, method, tell, errors, **fields)
        return tell

    return register
