"""Instructions of every kernel, counted by callgrind: repeatable where times are not.

    python -m benchmarks.kernels                                  a table beside the committed record
    python -m benchmarks.kernels --json docs/figures/kernels.json renews the record

One process under `valgrind --tool=callgrind` calls every kernel once. Before and after each call it calls a marker, a
function of libc that nothing else uses, and there callgrind writes what it counted since the last marker. Of that, only
the instructions inside our extension modules count, not those of Python, NumPy and libc (memcpy, allocation): what is
left is the same in every run, whatever else the machine does. valgrind 3.19 cannot run AVX-512: it is not counted.

JSON: `tools` {compiler, valgrind, architecture, targets}: counts compare only where they are equal; `kernels`: from
"profile target kernel" to {unit, count}, instructions a unit at d = 512 and its default stride.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from elftools.elf.elffile import ELFFile
from numpy.typing import NDArray

from he_engine.hint_rows import GROUP_BLOCKS
from he_engine.kernels import _answer, _client
from he_engine.params import TILE, Parameters
from he_engine.verify import CHECKS, PIECE_BLOCKS

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "figures" / "kernels.json"
RENEW = "python -m benchmarks.kernels --json docs/figures/kernels.json"
MISSING = "valgrind is missing: apt-get install valgrind"
MODULES = [Path(str(module.__file__)).resolve() for module in (_answer, _client)]
DRIVER = "from benchmarks.kernels import drive; drive()"
MARKER = "sched_get_priority_max"
TOLERANCE = 0.05  #: a larger rise fails
DIM = 512
PROFILES = ("compact", "exact")
UNIT_BYTES = 4 << 20  #: of the index, in a call of `answer`: the smallest unit of work that the server makes
SEED = 1

U32 = NDArray[np.uint32]
Figures = dict[str, dict[str, Any]]


# ---- what is counted ----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Call:
    """One call of one kernel, and how many units of work it does."""

    name: str
    unit: str
    units: int
    run: Callable[[], object]


def targets() -> list[str]:
    """The instruction sets that are counted."""
    return [target for target in _answer.targets() if target != "avx512"]


def calls(profile: str, target: str) -> Iterator[Call]:
    """Every kernel at the default layout of d = 512, on random residues."""
    p = Parameters.choose(profile, DIM)
    ring, planes, rows = p.ring, p.planes, p.rows_per_block
    primes, n = len(ring.primes), ring.degree
    many, few = UNIT_BYTES // (4 * p.block_words), GROUP_BLOCKS
    stack = (0, n // TILE, planes, TILE)
    rng = np.random.default_rng(SEED)

    def residues(*shape: int) -> U32:
        """Random residues of this shape, where 0 stands for the axis of primes."""
        axis = shape.index(0)
        parts = [rng.integers(0, q, shape[:axis] + shape[axis + 1 :], np.uint32) for q in ring.primes]
        return np.ascontiguousarray(np.stack(parts, axis))

    def words(*shape: int) -> NDArray[np.uint64]:
        return rng.integers(0, 1 << 64, shape, np.uint64)

    def call(name: str, unit: str, units: int, function: Callable[..., object], *arguments: object) -> Call:
        return Call(f"{profile} {target} {name}", unit, units, lambda: function(*arguments))

    answer = _answer.AnswerKernel(ring.log_n, ring.primes, p.stride, planes, target)
    blocks = residues(many, *stack)
    for count in 1, 2, 32:
        name, unit = f"answer {count} queries", "coordinate and query"
        if count == 1:
            name, unit = "answer 1 query", "coordinate"
        queries, out = residues(count, *stack), np.empty((count, many, primes, rows), np.uint32)
        yield call(name, unit, count * many * rows * DIM, answer.answer, blocks, queries, out)
    flat = blocks.reshape(many, primes, -1)
    yield call("first_noncanonical", "residue", flat.size, answer.first_noncanonical, flat)

    client = _client.ClientKernel(ring.log_n, ring.primes, ring.roots, p.stride, planes, target)
    polys, secrets, hints = residues(few, 0, n), residues(few, 0, n), residues(few, 0, n)
    yield call("forward", "residue", polys.size, client.forward, polys)
    yield call("inverse", "residue", polys.size, client.inverse, polys)
    yield call("expand_secrets", "residue", polys.size, client.expand_secrets, words(few, n // 4))

    weights, answers = residues(PIECE_BLOCKS, CHECKS, 0, rows), residues(PIECE_BLOCKS, 0, rows)
    fingerprint, public, other = residues(CHECKS, *stack), residues(*stack), residues(*stack)
    sums, ciphertext = fingerprint.reshape(1, CHECKS, primes, -1), other.reshape(1, primes, -1)
    yield call("expand_weights", "weight", weights.size, client.expand_weights, words(*weights.shape))
    yield call("weighted_sum of answers", "weight", weights.size, client.weighted_sum, weights, answers)
    yield call("weighted_sum of a fingerprint", "residue", sums.size, client.weighted_sum, sums, ciphertext)

    integers = rng.integers(-(1 << 20), 1 << 20, (few, rows, planes * p.stride), np.int32)
    yield call(
        "encrypt_blocks", "coordinate", few * rows * DIM, client.encrypt_blocks,
        integers, words(few, planes, n), secrets, public, other, weights[:few], blocks[:few], hints, fingerprint,
    )  # fmt: skip
    secret, mask, query = residues(0, n), residues(0, n), integers[0, 0].astype(np.int64)
    yield call(
        "encrypt_query", "residue", public.size, client.encrypt_query,
        query, words(n // 4 + planes * n), public, other, np.empty_like(public), secret, mask,
    )  # fmt: skip
    yield call("recover", "row", few * rows, client.recover, answers[:few], hints, secrets, secret, mask)
    packed = np.zeros((few, p.hint_bytes_per_block), np.uint8)
    yield call("pack_hint", "residue", hints.size, client.pack_hint, hints, p.hint_drop_bits)
    yield call("unpack_hint", "residue", hints.size, client.unpack_hint, packed, p.hint_drop_bits)


def drive() -> None:
    """Call every kernel between markers; (name, unit, units) of each as JSON on stdout. Runs under callgrind."""
    called = []
    for profile in PROFILES:
        for target in targets():
            for call in calls(profile, target):
                os.sched_get_priority_max(os.SCHED_OTHER)
                call.run()
                os.sched_get_priority_max(os.SCHED_OTHER)
                called.append((call.name, call.unit, call.units))
    print(json.dumps(called))


# ---- counting -----------------------------------------------------------------------------------------------
def own_cost(part: str) -> int:
    """Instructions inside MODULES, of one file of callgrind (its manual, "Callgrind Format Specification")."""
    total, ours = 0, False
    lines = iter(part.partition("\nevents: Ir\n")[2].splitlines())
    for line in lines:
        if line.startswith("ob="):
            ours = Path(line.removeprefix("ob=")) in MODULES
        elif line.startswith("calls="):
            next(lines)  # what the callee cost: it is counted where the callee is
        elif ours and line[:1].isdigit():
            total += int(line.split()[1])
    return total


def count_instructions() -> Figures:
    """Instructions a unit of every kernel. Raises RuntimeError where callgrind fails."""
    with tempfile.TemporaryDirectory(prefix="hesearch-callgrind-") as folder:
        command = [
            "valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/part", f"--dump-before={MARKER}",
            "--compress-strings=no", "--compress-pos=no", sys.executable, "-c", DRIVER,
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"valgrind: exit status {done.returncode}: {done.stderr[-2000:]}")
        called = json.loads(done.stdout)
        if len(list(Path(folder).glob("part.*"))) != 2 * len(called):
            raise RuntimeError(f"callgrind: expected two parts a kernel; does something else call {MARKER}?")
        costs = [own_cost(Path(f"{folder}/part.{2 * number}").read_text()) for number in range(1, len(called) + 1)]
    if 0 in costs:
        raise RuntimeError(f"callgrind: found no instructions inside {[module.name for module in MODULES]}")
    return {
        name: {"unit": unit, "count": round(cost / units, 4)}
        for (name, unit, units), cost in zip(called, costs, strict=True)
    }


def tools() -> dict[str, Any]:
    """What counts depend on besides the sources."""
    with MODULES[0].open("rb") as file:
        section = ELFFile(file).get_section_by_name(".comment")
        comment = section.data() if section else b""
    version = subprocess.run(["valgrind", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    return {
        "compiler": ", ".join(sorted({text.decode() for text in comment.split(b"\0") if text})),
        "valgrind": version,
        "architecture": platform.machine(),
        "targets": targets(),
    }


# ---- comparing ----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Comparison:
    """A line for each kernel that differs from the record: failures, and falls, which ask for a new record."""

    failures: list[str]
    falls: list[str]


def incomparable(recorded: dict[str, Any], here: dict[str, Any]) -> str | None:
    """Why counts made with these tools cannot be compared, and what to do; None if they can."""
    other = [f"{name}: got {here[name]}, recorded {recorded[name]}" for name in here if here[name] != recorded[name]]
    return f"the record was made with other tools ({'; '.join(other)}). To renew it: {RENEW}" if other else None


def compare(recorded: Figures, counted: Figures) -> Comparison:
    """A rise over 5 % fails, as does a kernel that only one side has, or has in another unit."""
    failures, falls = [], []
    for name in recorded | counted:
        old, new = recorded.get(name), counted.get(name)
        if old is None or new is None or old["unit"] != new["unit"]:
            failures.append(f"{name}: recorded {old}, counted {new}. To renew the record: {RENEW}")
            continue
        was, now = old["count"], new["count"]
        line = f"{name}: {now:.4f} instructions a {new['unit']}, recorded {was:.4f} ({now / was - 1:+.1%})"
        if now > was * (1 + TOLERANCE):
            failures.append(line)
        elif now < was * (1 - TOLERANCE):
            falls.append(f"{line}. To renew the record: {RENEW}")
    return Comparison(failures, falls)


def table(recorded: Figures, counted: Figures) -> str:
    """A line a kernel: instructions a unit, counted and recorded."""
    lines = [f"{'profile, target, kernel':48}{'counted':>12}{'recorded':>12}{'change':>9}  instructions a"]
    for name, figure in counted.items():
        was, now = recorded.get(name, {}).get("count"), figure["count"]
        change = f"{was:12.4f}{now / was - 1:+9.1%}" if was else f"{'–':>12}{'–':>9}"
        lines.append(f"{name:48}{now:12.4f}{change}  {figure['unit']}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description="Instructions of every kernel, beside the committed record."
    )
    parser.add_argument("--json", type=Path, help="write them to this file")
    arguments = parser.parse_args()
    if not shutil.which("valgrind"):
        print(MISSING, file=sys.stderr)
        return 1
    here, counted = tools(), count_instructions()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"tools": here, "kernels": {}}
    if arguments.json:
        arguments.json.write_text(json.dumps({"tools": here, "kernels": counted}, indent=1) + "\n")
    print(table(record["kernels"], counted))
    if reason := incomparable(record["tools"], here):
        print(reason)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
