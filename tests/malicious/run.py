"""Tells lies to real clients, over gRPC, and fails where one is believed.

    python -m tests.malicious.run --lies 20000 --seed 1 --json docs/figures/torture/malicious.json
    python -m tests.malicious.run --seed 1 --only 1234     # that one again
    python -m tests.malicious.run --list

Right are the errors that the lie is declared with and, where it may be harmless, the results of an honest server, bit
for bit. Anything else is a failure, and so is any decryption of what an honest server had not answered. Kind, position
and amount follow from seed and number; keys and noise are real ones, and new in every run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe, print_json
from he_client import HesearchError
from tests.malicious import answers, manifests, misplaced, parts, pieces, rebuilt  # noqa: F401  they register lies
from tests.malicious.lies import LIES, Lie
from tests.malicious.scenes import CHANGES, SCENES, Stage, Wrong, watched
from tests.malicious.server import LyingServer, Script
from tests.malicious.world import World

SHOWN = 20  #: failures in the JSON
MEMORY = "/dev/shm"
FRESH = 500  #: lies between two looks at whether an honest server is still believed
HASTY_TRIES = 20


@dataclass
class Outcome:
    """Of all lies."""

    told: int = 0
    detected: int = 0
    harmless: int = 0
    decrypted: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class Campaign:
    """One world, one server, and lies about it. `one` may be called for any number, in any order."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed, self.outcome = seed, Outcome()
        self.world = World(folder, seed)
        self.server = LyingServer(self.world)
        self.stage = Stage(self.world, self.server, folder)
        self._calls: dict[tuple[str, str, Any], int] = {}
        for query in range(len(self.world.queries)):
            self.stage.reader(hasty=False).search(self.world.queries[query])

    def one(self, number: int, lie: Lie | None = None) -> None:
        """Tells a lie, and notes what came of it."""
        lie = lie or LIES[sorted(LIES)[number % len(LIES)]]
        for _ in range(HASTY_TRIES if lie.hasty else 1):  # on a busy machine a hasty client may be gone before the lie
            script, came, decrypted = self._tell(number, lie)
            if script.told:
                break
        self._judge(number, lie, script, came, decrypted)

    def _tell(self, number: int, lie: Lie) -> tuple[Script, str, Counter[str]]:
        """Who told it, what came of it, and what was decrypted meanwhile."""
        rng = np.random.default_rng([self.seed, number])
        position = 0 if lie.everything else int(rng.integers(self._matching(lie)))
        always = lie.everything or lie.lasting or bool(rng.random() < 0.5)
        script = Script(lie.tell, lie.concerns, position, always, rng)
        before, decrypted = self._versions(lie), Counter(self.world.watch.counts)
        self.server.script = script
        try:
            SCENES[lie.scene](self.stage, np.random.default_rng([self.seed, number, 1]), lie.hasty)
            came = "harmless" if lie.harmless else "believed: no error, honest results"
        except lie.errors as error:
            came = type(error).__name__
        except (HesearchError, Wrong) as error:
            came = f"wrong reaction: {type(error).__name__}: {error}"
        except Exception as error:
            came = f"an error that is none of ours: {type(error).__name__}: {error}"
        finally:
            self.server.script = None
        decrypted = self.world.watch.counts - decrypted
        if before != self._versions(lie):
            self.world.renew(CHANGES[lie.scene])
        return script, came, decrypted

    def _judge(self, number: int, lie: Lie, script: Script, came: str, decrypted: Counter[str]) -> None:
        outcome = self.outcome
        fine = came == "harmless" or ":" not in came
        outcome.kinds.setdefault(lie.name, Counter())[came if fine else "failures"] += 1
        outcome.told += 1
        outcome.detected += fine and came != "harmless"
        outcome.harmless += came == "harmless"
        outcome.decrypted += decrypted
        if not fine:
            outcome.failures.append(f"{number}: {lie.name}: {came[:300]}")
        if not script.told:
            outcome.failures.append(f"{number}: {lie.name}: was not told")
        if decrypted["wrong answers"] or decrypted["wrong indexes"]:
            outcome.failures.append(f"{number}: {lie.name}: decrypted what no honest server had sent")
        if lie.of_residues and decrypted["answers"]:
            outcome.failures.append(f"{number}: {lie.name}: decrypted before all was verified")

    def _versions(self, lie: Lie) -> Any:
        name = CHANGES.get(lie.scene)
        return name and (self.world.client._describe(name).collection_id, self.world.version(name))

    def _matching(self, lie: Lie) -> int:
        """Calls of the kind that the lie is about, in an honest run of its scene."""
        at = lie.scene, lie.method, lie.part
        if at not in self._calls:
            script = Script(lambda call: call.honest(), lie.concerns, 1 << 30, False, np.random.default_rng(0))
            before = self._versions(lie)
            self.server.script = script
            SCENES[lie.scene](self.stage, np.random.default_rng(0), False)
            self.server.script = None
            if before != self._versions(lie):
                self.world.renew(CHANGES[lie.scene])
            self._calls[at] = script.seen
        assert self._calls[at], f"{lie.name}: its scene makes no such call"
        return self._calls[at]

    def honest(self) -> None:
        """Readers go on as before, and so do new ones."""
        for scene in ("batch", "refresh", "open", "open pinned"):
            SCENES[scene](self.stage, np.random.default_rng(self.outcome.told), False)
        self.stage.restart()

    def close(self) -> None:
        self.stage.close()
        self.server.close()
        self.world.close()


@contextmanager
def campaign(seed: int) -> Iterator[Campaign]:
    memory = MEMORY if Path(MEMORY).is_dir() else None  # syncs are not what is tested here
    with tempfile.TemporaryDirectory(prefix="malicious-", dir=memory) as folder:
        made = Campaign(Path(folder), seed)
        try:
            with watched(made.world):
                yield made
        finally:
            made.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lies", type=int, default=600, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--only", type=int, help="the lie of this number alone")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--list", action="store_true", help="name the lies")
    chosen = parser.parse_args(arguments)
    if chosen.list:
        print("\n".join(f"{lie.scene:12} {lie.name}" for lie in LIES.values()))
        return 0
    began = time.perf_counter()
    with campaign(chosen.seed) as told:
        for number in range(chosen.lies) if chosen.only is None else [chosen.only]:
            told.one(number)
            if number % FRESH == FRESH - 1:
                told.honest()
                elapsed_s = time.perf_counter() - began
                print(f"{number + 1:,} lies, {len(told.outcome.failures)} failures, {elapsed_s:.0f} s", flush=True)
        told.honest()
    outcome = told.outcome
    figures = {
        "what": "a server that lies",
        "runs": outcome.told,
        "failures": len(outcome.failures),
        "problems": outcome.failures[:SHOWN],
        "kinds": len(outcome.kinds),
        "detected": outcome.detected,
        "harmless": outcome.harmless,
        "decrypted": {key: outcome.decrypted[key] for key in ("answers", "wrong answers", "indexes", "wrong indexes")},
        "reactions": {name: dict(sorted(outcome.kinds[name].items())) for name in LIES if name in outcome.kinds},
        "seconds": round(time.perf_counter() - began, 1),
        "seed": chosen.seed,
        "command": f"python -m tests.malicious.run --lies {chosen.lies} --seed {chosen.seed}",
        "machine": describe(),
    }
    print_json(figures, chosen.json)
    return int(bool(outcome.failures))


if __name__ == "__main__":
    sys.exit(main())
