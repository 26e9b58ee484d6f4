"""How many answers were rejected with each fingerprint: after MAX of them it verifies none.

A wrong answer passes with probability at most 2^-92 or so, and each rejection tells the server that one guess was wrong
(docs/scheme.md): the bound on their number is what makes the sum small. `hesearch reseal --fingerprint` gives segments
that have reached it a new fingerprint, with fresh weights, for which counting begins at 0.

In memory, counts last as long as the client; in a folder, beyond, and processes share them: a file of as many bytes.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from he_client.durable import make_folder, state_errors, sync_folder
from he_client.parts import part_of
from he_engine.errors import TamperedAnswerError
from he_proto.v1 import hesearch_pb2 as pb

MAX = 1 << 16


class Rejections:
    """Thread-safe. `folder` None: memory alone."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._counts: Counter[bytes] = Counter()  # by digest of the fingerprint
        if folder is not None:
            make_folder(folder)

    def require(self, entries: Iterable[pb.SegmentEntry]) -> None:
        """Raises TamperedAnswerError where the fingerprint of one is worn; the answer is not looked at then."""
        if any(map(self.worn, entries)):
            raise TamperedAnswerError(
                f"answer: {MAX:,} were rejected with a fingerprint of this collection, so it verifies no more; the "
                "server lies or is broken; `hesearch reseal --fingerprint` makes a new one"
            )

    def worn(self, entry: pb.SegmentEntry) -> bool:
        """Whether MAX answers of this segment were rejected."""
        digest = _digest(entry)
        return digest is not None and self._count(digest) >= MAX

    def add(self, entries: Iterable[pb.SegmentEntry]) -> None:
        """One more for each of these: an answer was rejected that concerned them all. On the disk when it returns.

        Raises TamperedAnswerError where the folder cannot be written: it is counted in memory then."""
        digests = [digest for digest in map(_digest, entries) if digest]
        with self._lock:
            self._counts.update(digests)
        if self._folder is None:
            return
        try:
            for digest in digests:
                self._append(self._folder, digest)
        except OSError as error:
            raise TamperedAnswerError(
                f"answer: it was rejected, which could not be counted in {self._folder}: {error.strerror}"
            ) from None

    def _append(self, folder: Path, digest: bytes) -> None:
        descriptor = os.open(self._path(digest), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, b"x")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(folder)  # every time: another process may have made the file, and not have synced its name yet

    def _count(self, digest: bytes) -> int:
        """Raises HesearchError where the folder cannot be read."""
        with self._lock:
            count = self._counts.get(digest, 0)
        if self._folder is None:
            return count
        with state_errors(self._folder, "rejections"):
            try:
                return max(count, self._path(digest).stat().st_size)
            except FileNotFoundError:
                return count

    def _path(self, digest: bytes) -> Path:
        assert self._folder is not None
        return self._folder / f"{digest.hex()}.rejected"


def _digest(entry: pb.SegmentEntry) -> bytes | None:
    """Of its fingerprint; None: its engine has none."""
    part = part_of(entry, pb.PART_KIND_FINGERPRINT)
    return part.sha256 if part is not None and part.length_bytes else None
