"""The same targets under atheris (libFuzzer), which keeps the inputs that reach new code and changes those further.

    pip install atheris
    python -m tests.fuzz.guided --target segment-file --inputs 1000000 --seed 1 --json build/guided.json

One target a process: libFuzzer does not give control back.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from pathlib import Path
from random import Random
from types import FunctionType

import atheris  # type: ignore[import-untyped]

from tests.fuzz.mutate import MAX_BYTES
from tests.fuzz.run import MEASURED, Outcome, Run, one, write
from tests.fuzz.targets import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--failures", type=Path)
    chosen = parser.parse_args()
    command = f"python -m tests.fuzz.guided --target {chosen.target} --inputs {chosen.inputs} --seed {chosen.seed}"
    target = TARGETS[chosen.target]()
    corpus, outcome, run = target.corpus, Outcome(), Run(target, chosen.seed, command)

    def test_one_input(data: bytes) -> None:
        one(target, data, outcome, measured=outcome.runs % MEASURED == 0)
        if outcome.runs >= chosen.inputs:
            write([run.report(outcome, chosen.failures)], chosen.json)
            sys.stdout.flush()
            target.close()
            os._exit(int(bool(outcome.failures)))

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        changed = target.mutate(rng, data or rng.choice(corpus), corpus)
        if target.repair and rng.random() < 0.6:
            changed = target.repair(changed)
        return changed[:max_size]

    with tempfile.TemporaryDirectory() as name:
        for number, sample in enumerate(corpus):
            (Path(name) / str(number)).write_bytes(sample)
        flags = [f"-runs={2 * chosen.inputs}", f"-seed={chosen.seed}", f"-max_len={MAX_BYTES}", "-verbosity=0", name]
        _instrument()
        atheris.Setup([sys.argv[0], *flags], test_one_input, custom_mutator=mutate)
        atheris.Fuzz()


def _instrument() -> None:
    """All functions of ours. Atheris's hook for imports does not see packages that are installed as editable."""
    for function in [found for found in gc.get_objects() if isinstance(found, FunctionType)]:
        if str(function.__module__).startswith(("he_client", "he_engine", "he_proto", "he_server")):
            atheris.instrument_func(function)


if __name__ == "__main__":
    main()
