"""What strangers may send to the engine `tenseal`, fuzzed where SEAL cannot take this process with it.

    python -m tests.fuzz.seal --inputs 50000 --seed 1 --json build/seal.json

Three targets, so many inputs each:

    ciphertexts     queries and blocks as clients send them, through the server's checks and its real workers. Half of
                    every job is sound, and its answer must be the same as alone. Failures: a worker that ends, an error
                    that is not ours, an answer that is not canonical, or another for the sound half.
    answers         as servers send them, through a client's checks, with its key. Failures: the process ends or hangs,
                    memory, an error that is not ours.
    seal-files      SEAL's own format, given to SEAL's own parser. Nobody can send one: it shows what that parser would
                    do. That it ends, hangs or takes memory is counted and no failure.

What parses the last two is a process that is replaced when it ends, takes HUNG_S or grows by more than GROWN_BYTES
(tests.fuzz.seal_processes); the input is then tried once more in a new one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from he_engine.tenseal_client import generate_state
from tests.fuzz import seal_child, seal_inputs
from tests.fuzz.run import write
from tests.fuzz.seal_child import LATER, MEMORY, REFUSED, TAKEN
from tests.fuzz.seal_processes import ENDED, HUNG, Child, Server, sound_answer


class Tally:
    """What became of the inputs of one target, and of those of them with one bit flipped."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self.flipped: Counter[str] = Counter()
        self.first: dict[str, bytes] = {}
        self._began = time.perf_counter()

    def add(self, outcome: str, data: bytes, *, flipped: bool = False) -> None:
        self.counts[outcome] += 1
        self.flipped[outcome] += flipped
        self.first.setdefault(outcome, data)

    def report(self, allowed: Sequence[str], failures: Path | None, **more: Any) -> dict[str, Any]:
        """allowed: outcomes that are no failures. Of all others, and of what ended, the first input is named, and
        written into the folder `failures`."""
        wrong = sum(count for what, count in self.counts.items() if what.partition(":")[0] not in allowed)
        found = []
        for what, data in self.first.items():
            if what in (TAKEN, REFUSED, LATER):
                continue
            name = hashlib.sha256(data).hexdigest()[:16]
            found.append({"what": what, "input": name})
            if failures is not None:
                (failures / self.name).mkdir(parents=True, exist_ok=True)
                (failures / self.name / name).write_bytes(data)
        return {
            "what": f"fuzz {self.name}",
            "runs": self.counts.total(),
            "failures": wrong or int(not self.counts[TAKEN]),
            "counts": dict(sorted(self.counts.items())),
            "one_bit_flipped": {what: count for what, count in sorted(self.flipped.items()) if count},
            "found": found,
            "seconds": round(time.perf_counter() - self._began, 1),
            **more,
        }


def ciphertexts(inputs: int, seed: int, failures: Path | None) -> dict[str, Any]:
    rng = Random(f"ciphertexts {seed}")
    tally, server = Tally("ciphertexts"), Server(rng)
    other = seal_inputs.fresh(rng)
    try:
        while tally.counts.total() < inputs:
            data, flipped = rng.choice((server.block, server.query)), rng.random() < 0.1
            data = seal_inputs.flipped(rng, data) if flipped else seal_inputs.changed(rng, data, other)
            give = rng.choice((server.as_block, server.as_query))
            tally.add(give(data, checked=rng.random() < 0.75), data, flipped=flipped)
        return tally.report((TAKEN, REFUSED), failures, peak_bytes=server.peak_bytes)
    finally:
        server.close()


def answers(inputs: int, seed: int, failures: Path | None) -> dict[str, Any]:
    rng = Random(f"answers {seed}")
    state = generate_state()
    tally, child = Tally("answers"), Child(state)
    sound, other = sound_answer(state), seal_inputs.polynomials(rng, 3)
    try:
        tally.add(child.parse(seal_child.ANSWER, sound), sound)
        while tally.counts.total() < inputs:
            flipped = rng.random() < 0.1
            data = seal_inputs.flipped(rng, sound) if flipped else seal_inputs.changed(rng, sound, other)
            tally.add(child.parse(seal_child.ANSWER, data), data, flipped=flipped)
    finally:
        child.close()
    return tally.report((TAKEN, REFUSED), failures, starts=child.starts)


def seal_files(inputs: int, seed: int, failures: Path | None) -> dict[str, Any]:
    rng = Random(f"seal-files {seed}")
    tally, child = Tally("seal-files"), Child(generate_state())
    file = seal_inputs.SealFile(seal_inputs.fresh(rng))
    sound = file.valid()
    try:
        tally.add(child.parse(seal_child.FILE, sound), sound)
        while tally.counts.total() < inputs:
            flipped = rng.random() < 0.1
            data = seal_inputs.flipped(rng, sound) if flipped else file.changed(rng)
            tally.add(child.parse(seal_child.FILE, data), data, flipped=flipped)
    finally:
        child.close()
    allowed = (TAKEN, REFUSED, LATER, ENDED, HUNG, MEMORY)
    return tally.report(allowed, failures, starts=child.starts, version=file.version)


TARGETS = {"ciphertexts": ciphertexts, "answers": answers, "seal-files": seal_files}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all")
    parser.add_argument("--inputs", type=int, default=2000, help="for each target (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the report goes; default: standard output")
    parser.add_argument(
        "--failures", type=Path, help="folder for the first input of each kind that ended, hung or failed"
    )
    chosen = parser.parse_args(arguments)
    lines: list[dict[str, Any]] = []
    for name in chosen.target:
        line = TARGETS[name](chosen.inputs, chosen.seed, chosen.failures)
        command = f"python -m tests.fuzz.seal --target {name} --inputs {chosen.inputs} --seed {chosen.seed}"
        lines.append({**line, "seed": chosen.seed, "command": command})
        print(f"{name}: {json.dumps(line['counts'])}", file=sys.stderr)
        if chosen.json:
            write(lines, chosen.json)  # as far as it went
    if not chosen.json:
        write(lines, None)
    return int(any(line["failures"] for line in lines))


if __name__ == "__main__":
    sys.exit(main())
