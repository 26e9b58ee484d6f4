"""Long byte strings as streams of messages: 1 MiB at a time, and never more than one chunk copied.

gRPC moves 1 MiB messages at about 1 GB/s and large ones at a tenth of that, and refuses what is over its
message limit: so whatever has no small bound is streamed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from he_engine.engine import Buffer
from he_proto.v1 import hesearch_pb2 as pb

CHUNK_BYTES = 1 << 20  #: the most that one message carries of a part, a query or an answer


def flat(buffer: Buffer) -> memoryview:
    """The bytes of any C-contiguous buffer (an array too), one after the other; nothing is copied."""
    view = memoryview(buffer)
    return view if view.ndim == 1 and view.format == "B" else view.cast("B")


def chunks(buffer: Buffer, size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """`buffer` in pieces of `size` bytes, the last one shorter; nothing at all for an empty one."""
    view = flat(buffer)
    for start in range(0, len(view), size):
        yield bytes(view[start : start + size])


def joined(buffers: Iterable[Buffer], size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """`buffers` end to end in pieces of `size` bytes, whatever their lengths; no empty piece."""
    waiting = bytearray()
    for buffer in buffers:
        view = flat(buffer)
        start = 0
        while start < len(view):
            end = start + size - len(waiting)
            if not waiting and end <= len(view):
                yield bytes(view[start:end])
            else:
                waiting += view[start:end]
                if len(waiting) == size:
                    yield bytes(waiting)
                    waiting.clear()
            start = end
    if waiting:
        yield bytes(waiting)


def segment_requests(header: pb.SegmentHeader, parts: Iterable[Buffer]) -> Iterator[pb.WriteSegmentRequest]:
    """What WriteSegment takes: the header, then the parts' bytes in the header's order."""
    yield pb.WriteSegmentRequest(header=header)
    for chunk in joined(parts):
        yield pb.WriteSegmentRequest(chunk=chunk)


def answer_requests(header: pb.AnswerHeader, ciphertexts: Iterable[Buffer]) -> Iterator[pb.AnswerRequest]:
    """What Answer takes: the header, then the query ciphertexts end to end."""
    yield pb.AnswerRequest(header=header)
    for chunk in joined(ciphertexts):
        yield pb.AnswerRequest(chunk=chunk)
