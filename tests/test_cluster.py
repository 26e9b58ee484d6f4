"""Ray, in a network of its own: tests/cluster, and the tests of the SDK with servers that have it answer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import loopback

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[dev]'")

LIMIT_S = 900


def run_inside(*arguments: str, says: str = " passed") -> None:
    if not loopback.possible():
        pytest.skip("this machine lets nobody make a network namespace")
    command = loopback.inside([sys.executable, *arguments])
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert says in done.stdout


@pytest.mark.parametrize("file", ["answers", "faults", "changes", "head", "stopping"])
def test_answers_from_ray(file: str) -> None:
    run_inside("-m", "pytest", "-p", "no:cacheprovider", f"tests/cluster/{file}.py")


@pytest.mark.parametrize("nodes", [pytest.param(1, marks=pytest.mark.large), 2])
def test_the_sdk_on_ray(nodes: int) -> None:
    """The tests that every server has to pass, with answers from as many nodes."""
    run_inside("-m", "tests.cluster.conformance", str(nodes))


def test_kill_actors() -> None:
    """A short run of `make torture`'s."""
    run_inside("-m", "tests.torture.kill_actors", "--seed", "3", "--runs", "3", says='"failures": 0')
