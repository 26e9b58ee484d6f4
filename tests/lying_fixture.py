"""A real server that lies: the embedded one, whose responses a test may alter on their way to the client."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from he_client import Client
from he_client.cache import PartCache
from he_client.transport import Transport
from he_engine.hint_client import HintClient
from he_proto.v1 import hesearch_pb2 as pb

Lie = Callable[[Any], Any]


class LyingTransport:
    """The honest transport, and a lie for some methods.

    lies[method](response) gives what the client sees of a call; of a stream, lies[method](list of responses) gives
    the responses it sees. `before[method]()` runs before the call, `calls` names the methods in order.
    """

    def __init__(self, honest: Transport) -> None:
        self.honest = honest
        self.lies: dict[str, Lie] = {}
        self.before: dict[str, Callable[[], None]] = {}
        self.calls: list[str] = []
        self.requests: list[Any] = []

    @property
    def attempts(self) -> int:
        return self.honest.attempts

    def call(self, method: str, request: Any, *, timeout_s: float) -> Any:
        self._note(method, request)
        response = self.honest.call(method, request, timeout_s=timeout_s)
        lie = self.lies.get(method)
        return response if lie is None else lie(copy_of(response))

    def stream(self, method: str, request: Any, *, timeout_s: float) -> Iterator[Any]:
        self._note(method, request)
        responses = self.honest.stream(method, request, timeout_s=timeout_s)
        lie = self.lies.get(method)
        yield from responses if lie is None else lie([copy_of(r) for r in responses])

    def _note(self, method: str, request: Any) -> None:
        self.calls.append(method)
        self.requests.append(request)
        self.before.get(method, lambda: None)()

    def close(self) -> None:
        self.honest.close()


def copy_of(message: Any) -> Any:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


@contextmanager
def lying_client() -> Iterator[tuple[Client, LyingTransport]]:
    """A client of a server in this process that has not lied yet."""
    with Client(":memory:", threads=1) as client:
        transport = LyingTransport(client._remote.transport)
        client._remote = replace(client._remote, transport=transport)
        yield client, transport


@contextmanager
def dying(transport: LyingTransport, fatal: int, after: bool) -> Iterator[list[int]]:
    """The client dies at its n-th call to the server, or when that was answered. The list has an entry if it did."""

    class Killed(BaseException):
        pass

    honest, calls = transport.honest, [0]
    ended: list[int] = []

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == fatal and not after:
                raise Killed
            result = method(*arguments, **options)
            if calls[0] == fatal:
                raise Killed
            return result

        return call

    transport.call, transport.stream = counted(honest.call), counted(honest.stream)  # type: ignore[method-assign]
    try:
        yield ended
    except Killed:
        ended.append(calls[0])
    finally:
        transport.call, transport.stream = honest.call, honest.stream  # type: ignore[method-assign]


def forget_parts(client: Client) -> None:
    """Collections opened from now on fetch every part from the server."""
    client._cache = PartCache(None)


def block_by_block(pieces: Iterable[pb.AnswerResponse]) -> list[pb.AnswerResponse]:
    """The same answers, one message a block."""
    split = []
    for piece in pieces:
        size = len(piece.residues) // piece.blocks
        for number in range(piece.blocks):
            one = copy_of(piece)
            one.first_block, one.blocks = piece.first_block + number, 1
            one.residues = piece.residues[number * size : (number + 1) * size]
            split.append(one)
    return split


def decrypted_segments(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The engine's segments, in the order in which they are decrypted from now on."""
    decrypted: list[Any] = []
    _note_decryption(monkeypatch, lambda segment, _: decrypted.append(segment))
    return decrypted


def whole_answers(pieces: Iterable[pb.AnswerResponse]) -> list[bytes]:
    """Each segment's answer to each query, its blocks in order."""
    ordered = sorted(pieces, key=lambda p: (p.query, p.segment_id, p.first_block))
    each = itertools.groupby(ordered, key=lambda p: (p.query, p.segment_id))
    return [b"".join(piece.residues for piece in of_one) for _, of_one in each]


def decrypted_answers(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is decrypted from now on."""
    decrypted: list[bytes] = []
    _note_decryption(monkeypatch, lambda _, answer: decrypted.append(answer.tobytes()))
    return decrypted


def _note_decryption(monkeypatch: pytest.MonkeyPatch, note: Callable[[Any, Any], None]) -> None:
    """note: is given each of the engine's segments and its answer, before that is decrypted."""
    honest = HintClient._recover_one

    def noted(self: HintClient, query: Any, segment: Any, answer: Any) -> Any:
        note(segment, answer)
        return honest(self, query, segment, answer)

    monkeypatch.setattr(HintClient, "_recover_one", noted)


def forbid_decryption(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decrypted before it was verified")

    monkeypatch.setattr(HintClient, "_recover_one", never)
