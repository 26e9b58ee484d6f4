"""A network interface of the simulation: bytes pass one after the other, first come first served."""

from __future__ import annotations

from he_proto.chunks import CHUNK_BYTES


class Pipe:
    """Times are those at which bytes have passed. Senders come in the order of the calls."""

    def __init__(self, bytes_per_s: float, piece_bytes: float = CHUNK_BYTES) -> None:
        self._bytes_per_s, self._piece_bytes = bytes_per_s, piece_bytes
        self._free_s = 0.0
        self.carried_bytes = 0.0

    def send(self, ready_s: float, size_bytes: float) -> float:
        """Bytes that are all there at `ready_s`."""
        return self.stream(ready_s, ready_s, size_bytes)

    def stream(self, first_s: float, last_s: float, size_bytes: float) -> float:
        """Bytes that come evenly from `first_s` to `last_s`: they pass meanwhile where nobody is before them, and the
        last piece after the end."""
        self._free_s = max(self._free_s, first_s) + size_bytes / self._bytes_per_s
        self.carried_bytes += size_bytes
        return max(self._free_s, last_s + min(size_bytes, self._piece_bytes) / self._bytes_per_s)
