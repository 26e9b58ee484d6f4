"""Many encryptions under one key, in every way that could repeat what must serve once, and what repeated.

    threads     share one client                     spawns, restarts   open the collection anew
    forks       inherit a client, its counter too    snapshots          go on with the same randomness

The first four all encrypt one and the same message: only randomness keeps them apart. Snapshots draw the same
randomness and have different messages: only the message does. The controls take away both: then everything repeats.

    python -m tests.single_use --encryptions 1000000 --json docs/figures/single_use.json
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import secrets
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from he_engine.hint_client import HintClient
from he_engine.keys import RootKey
from he_engine.params import Parameters
from he_engine.public import keystream
from he_engine.sealing import SALT_BYTES, seal, seal_records

KINDS = ("block ids", "block secrets", "query secrets", "AEAD keys with nonces")
WORKERS = 4  #: of each way
SEGMENT_BLOCKS = 16
ROUND_QUERIES, ROUND_SEALS, COLUMN_RECORDS = 12, 6, 6
ROUND = SEGMENT_BLOCKS + ROUND_QUERIES + ROUND_SEALS + COLUMN_RECORDS
PARAMETERS = Parameters.choose("compact", 16, 16)
COLLECTION, STATE = bytes(16), bytes(32)
DIGEST_BYTES = 16


Way = Callable[["Work", list[Path]], None]


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker does; in plain bytes, as it goes to other processes. The key is of this test alone."""

    root: bytes
    rounds: int
    first_message: int = 0
    new_messages: bool = False
    hedged: bool = True

    def client(self) -> Watched:
        return Watched(RootKey(self.root) if self.hedged else Unhedged(self.root))


class Watched(HintClient):
    """Notes the digests of the block secrets that are made, by seed."""

    def __init__(self, key: RootKey) -> None:
        super().__init__(PARAMETERS, key, COLLECTION, STATE, threads=1)
        self.key = key
        self.made: dict[bytes, list[bytes]] = {}
        make = self._cipher.block_secrets

        def noting(seed: bytes, first: int, count: int) -> NDArray[np.uint32]:
            made = make(seed, first, count)
            self.made.setdefault(seed, []).extend(_digest(s.tobytes()) for s in made)
            return made

        self._cipher.block_secrets = noting  # type: ignore[method-assign]


class Unhedged(RootKey):
    """Seeds that depend on randomness alone."""

    __slots__ = ()

    def hedged_seed(self, label: str, *content: bytes | memoryview | int) -> bytes:  # noqa: ARG002
        return super().hedged_seed(label)


def message(number: int) -> NDArray[np.float64]:
    """A vector of norm ≤ 1 for every number below 3^16."""
    digits = number // 3 ** np.arange(16) % 3
    return (digits - 1) / 4.0


def encrypt(work: Work, client: Watched, out: Path) -> None:
    """`rounds` of ROUND encryptions; the digests of what they used go to `out`, KINDS one after the other."""
    used: list[list[bytes]] = [[] for _ in KINDS]
    ids, block_secrets, query_secrets, nonces = used
    rows = np.zeros((SEGMENT_BLOCKS * PARAMETERS.rows_per_block, 16))
    for number in range(work.first_message, work.first_message + work.rounds):
        vector = message(number if work.new_messages else 0)
        rows[0] = vector
        seed = client.setup(rows).seed
        ids += [_digest(seed, struct.pack(">Q", k)) for k in range(SEGMENT_BLOCKS)]
        block_secrets += client.made.pop(seed)
        for _ in range(ROUND_QUERIES):
            query = client.query(vector)
            query_secrets.append(_digest(query._open(client)[0].tobytes()))
            query.close()
        for _ in range(ROUND_SEALS):
            salt = seal(client.key, "rows", COLLECTION, vector.tobytes())[:SALT_BYTES]
            nonces.append(_digest(client.key.derive("seal", b"rows", salt), bytes(12)))
        salt, _ = seal_records(client.key, "payloads", COLLECTION, [vector.tobytes()] * COLUMN_RECORDS)
        column_key = client.key.derive("records", b"payloads", COLLECTION, salt)
        nonces += [_digest(column_key, k.to_bytes(12, "big")) for k in range(COLUMN_RECORDS)]
    out.write_bytes(b"".join(struct.pack(">Q", len(kind)) + b"".join(kind) for kind in used))


def _digest(*fields: bytes) -> bytes:
    return hashlib.sha256(b"".join(fields)).digest()[:DIGEST_BYTES]


def read(path: Path) -> list[list[bytes]]:
    """What `encrypt` wrote."""
    raw, used = path.read_bytes(), []
    for _ in KINDS:
        (count,) = struct.unpack_from(">Q", raw)
        raw = raw[8:]
        used.append([raw[i : i + DIGEST_BYTES] for i in range(0, count * DIGEST_BYTES, DIGEST_BYTES)])
        raw = raw[count * DIGEST_BYTES :]
    return used


# ---- the ways --------------------------------------------------------------------------------------------
def threads(work: Work, outs: list[Path]) -> None:
    client = work.client()
    running = [threading.Thread(target=encrypt, args=(work, client, out)) for out in outs]
    for one in running:
        one.start()
    for one in running:
        one.join()


def forks(work: Work, outs: list[Path]) -> None:
    client = work.client()
    client.query(message(0)).close()
    _processes("fork", [partial(encrypt, work, client, out) for out in outs])


def spawns(work: Work, outs: list[Path]) -> None:
    _processes("spawn", [partial(open_and_encrypt, work, out) for out in outs])


def open_and_encrypt(work: Work, out: Path) -> None:
    encrypt(work, work.client(), out)


def restarts(work: Work, outs: list[Path]) -> None:
    """One after the other, each ending as in a crash."""
    for out in outs:
        subprocess.run(
            [sys.executable, "-m", "tests.single_use", "--worker", str(work.rounds), str(out)],
            input=work.root.hex().encode(), check=True,
        )  # fmt: skip


def snapshots(work: Work, outs: list[Path], *, same_messages: bool = False) -> None:
    """Forks whose randomness is one and the same stream."""
    client = work.client()
    todo = []
    for number, out in enumerate(outs):
        first = 0 if same_messages else number * work.rounds
        mine = Work(work.root, work.rounds, first, new_messages=True, hedged=work.hedged)
        todo.append(partial(encrypt_again, mine, client, out))
    _processes("fork", todo)


def encrypt_again(work: Work, client: Watched, out: Path) -> None:
    stream = io.BytesIO(keystream(bytes(32), 1 << 20).tobytes())  # 8 MiB: 262,144 draws of 32 bytes
    os.urandom = stream.read
    encrypt(work, client, out)
    if not stream.read(1):
        raise SystemExit("the stream is too short")


def _processes(how: str, todo: Sequence[Callable[[], None]]) -> None:
    context = multiprocessing.get_context(how)
    running = [context.Process(target=one) for one in todo]  # type: ignore[attr-defined]
    for one in running:
        one.start()
    for one in running:
        one.join()
        if one.exitcode:
            raise SystemExit(f"a worker ended with {one.exitcode}")


# ---- all of them -----------------------------------------------------------------------------------------
def measure(encryptions: int) -> dict[str, object]:
    """Counts and repeats by kind: of all ways together, since they share a key; and of the controls."""
    root = secrets.token_bytes(32)
    work = Work(root, rounds=-(-encryptions // (5 * WORKERS * ROUND)))
    control = Work(root, rounds=2)
    ways: dict[str, Way] = {
        "threads": threads,
        "forks": forks,
        "spawns": spawns,
        "restarts": restarts,
        "snapshots": snapshots,
    }
    controls: dict[str, tuple[Work, Way]] = {
        "same randomness, same messages": (control, partial(snapshots, same_messages=True)),
        "same randomness, no hedge": (Work(root, 2, hedged=False), snapshots),
    }
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        by_way = {name: _run(Path(folder) / name, way, work) for name, way in ways.items()}
        by_control = {name: _run(Path(folder) / name, way, todo) for name, (todo, way) in controls.items()}
    together = [[digest for way in by_way.values() for digest in way[kind]] for kind in range(len(KINDS))]
    return {
        "encryptions": {name: _encryptions(way) for name, way in by_way.items()} | {"all": _encryptions(together)},
        "used": {kind: len(digests) for kind, digests in zip(KINDS, together, strict=True)},
        "repeated": _repeated(together),
        "controls": {
            name: {"used": {k: len(d) for k, d in zip(KINDS, way, strict=True)}, "repeated": _repeated(way)}
            for name, way in by_control.items()
        },
        "workers of each way": WORKERS,
        "parameters": {"profile": PARAMETERS.profile, "degree": PARAMETERS.ring.degree, "planes": PARAMETERS.planes},
        "seconds": round(time.perf_counter() - started, 1),
    }


def _run(folder: Path, way: Way, work: Work) -> list[list[bytes]]:
    folder.mkdir()
    outs = [folder / str(number) for number in range(WORKERS)]
    way(work, outs)
    found = [read(out) for out in outs]
    return [[digest for worker in found for digest in worker[kind]] for kind in range(len(KINDS))]


def _encryptions(used: list[list[bytes]]) -> int:
    """Blocks, queries and sealed records; a block's id and secret are of one encryption."""
    return sum(len(digests) for digests in used[1:])


def _repeated(used: list[list[bytes]]) -> dict[str, int]:
    return {kind: len(digests) - len(set(digests)) for kind, digests in zip(KINDS, used, strict=True)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encryptions", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=2, metavar=("ROUNDS", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        rounds, out = arguments.worker
        open_and_encrypt(Work(bytes.fromhex(sys.stdin.read()), int(rounds)), Path(out))
        os._exit(0)
    measured = measure(arguments.encryptions)
    text = json.dumps(measured, indent=1) + "\n"
    if arguments.json:
        arguments.json.write_text(text)
    print(text, end="")
    return 1 if any(measured["repeated"].values()) else 0  # type: ignore[attr-defined]


if __name__ == "__main__":
    raise SystemExit(main())
