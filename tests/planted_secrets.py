"""A process that uses secrets, closes them, and counts what is left of them in its own memory.

    python -m tests.planted_secrets KEYFILE MASKED

prints JSON: occurrences while in use and after closing, by secret. MASKED is the root key, every byte XOR 0xA5: what is
looked for must not be in memory for that alone. Memory is masked piece by piece in one buffer, and searched there.
Quarters count: where memory is freed without being overwritten, the allocator writes over its first bytes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from he_client import Client, CollectionKey
from tests.engine_fixture import Both

MASK = 0xA5
PATTERN_BYTES = 32
QUARTER_BYTES = 8
PIECE_BYTES = 1 << 22


def masked(secret: NDArray[np.uint32]) -> bytes:
    """Of some bytes in the middle of an array, without another copy of them."""
    middle = secret.nbytes // 2
    return np.bitwise_xor(secret.reshape(-1).view(np.uint8)[middle:][:PATTERN_BYTES], np.uint8(MASK)).tobytes()


def occurrences(pattern: bytes) -> int:
    """How many quarters of what `pattern` masks are in this process's writable memory, but for this search's buffer."""
    quarters = [pattern[i : i + QUARTER_BYTES] for i in range(0, PATTERN_BYTES, QUARTER_BYTES)]
    buffer, found = bytearray(PIECE_BYTES), 0
    view, words = memoryview(buffer), np.frombuffer(buffer, np.uint8)
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    for first, last in _writable(words.ctypes.data, words.ctypes.data + PIECE_BYTES):
        while first + QUARTER_BYTES <= last:
            try:
                got = os.preadv(memory, [view[: last - first]], first)
            except OSError:  # a device's pages
                break
            np.bitwise_xor(words, np.uint8(MASK), out=words)
            found += sum(buffer.count(quarter, 0, got) for quarter in quarters)
            first += max(got - QUARTER_BYTES + 1, 1)
    os.close(memory)
    words.fill(0)
    return found


def _writable(without_first: int, without_last: int) -> Iterator[tuple[int, int]]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, *_ = line.split()
        first, last = (int(end, 16) for end in span.split("-"))
        if access.startswith("rw"):
            yield first, min(last, max(first, without_first))
            yield max(first, min(last, without_last)), last


def root_key(path: Path, pattern: bytes) -> dict[str, list[int]]:
    """Loaded from a file, used by the SDK, closed."""
    key = CollectionKey.load(path, passphrase="horse")
    found = [occurrences(pattern)]
    vectors = np.random.default_rng(1).normal(size=(200, 16))
    with Client(":memory:") as client:
        notes = client.create_collection("notes", dim=16, key=key)
        notes.insert(range(200), vectors, payloads=["text"] * 200)
        assert notes.search(vectors[7], k=1)[0].id == 7
    found.append(occurrences(pattern))
    held = key._root  # freed memory might be used again before it is searched, and hide that nothing overwrote it
    key.close()
    found.append(occurrences(pattern))
    del held
    return {"root key": found}


def native(path: Path) -> dict[str, list[int]]:
    """Block secrets and the query secret, as the engine keeps them between calls."""
    both = Both(path, "exact", 16)
    rows = np.full((200, 16), 0.25)
    _, segment, index = both.setup(rows)
    query = both.client.query(rows[0])
    both.client.recover(query, [segment], [both.answer(query, index)])
    ((piece,),) = (entries.values() for entries in both.client._secrets._entries.values())
    held = {"query secret": query._open(both.client)[0], "block secret": piece.array}
    patterns = {name: masked(array) for name, array in held.items()}
    in_use = {name: occurrences(pattern) for name, pattern in patterns.items()}
    query.close()
    both.client.close()
    closed = {name: occurrences(pattern) for name, pattern in patterns.items()}
    held.clear()
    return {name: [in_use[name], closed[name]] for name in patterns}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(root_key(Path(sys.argv[1]), bytes.fromhex(sys.argv[2])) | native(Path(folder))))
