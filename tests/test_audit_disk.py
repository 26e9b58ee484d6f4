"""The audit log on a disk that fails or loses its power: what was acknowledged is there, and nothing else passes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from he_server.audit.keys import read_sealing_key
from he_server.audit.log import open_audit_log
from he_server.audit.reading import entries
from he_server.audit.verify import verify
from tests.audit_fixture import kek
from tests.faults.disk import Choice, Disk, Durable, Everything, Subset
from tests.faults.faultio import Op, environment, read_record


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory.mktemp("faultio"))


def _run(preloaded: dict[str, str], *arguments: str | Path) -> str:
    command = [sys.executable, "-m", "tests.audit_fixture", *map(str, arguments)]
    return subprocess.run(command, env=preloaded, stdout=subprocess.PIPE, text=True, check=True).stdout


def _numbers(data: Path) -> list[int]:
    sealing = read_sealing_key(data / "audit", kek())
    return [int(of["request_id"], 16) for of in entries(data / "audit", sealing) if of["kind"] == "entry"]


def test_what_was_acknowledged_survives_a_loss_of_power(tmp_path: Path, preloaded: dict[str, str]) -> None:
    """After every recorded call, as the strictest and the laxest disk leave it, and as seeded ones in between do."""
    data = tmp_path / "data"
    data.mkdir()
    _run(preloaded, "power", data, tmp_path / "record")
    data = tmp_path / "empty"
    data.mkdir()
    disk, acknowledged, seen, cuts = Disk(data), list[int](), set[object](), 0
    for number, call in enumerate(read_record(tmp_path / "record")):
        if call.op is Op.MARK:
            acknowledged += [int(call.path)] if call.path.isdigit() else []
            continue
        disk.apply(call)
        choices: list[Choice] = [Durable(), Everything(), *(Subset(f"{number} {seed}") for seed in range(2))]
        for choice in choices:
            state = disk.state(choice)
            if state.key in seen:
                continue
            seen.add(state.key)
            left = tmp_path / f"left-{number}-{choice.label}"
            state.write(left)
            open_audit_log(left, kek()).close()
            assert [of for of in _numbers(left) if of % 100 < 99][: len(acknowledged)] == acknowledged
            assert not verify(left / "audit").problem
            cuts += b'"cut":' in (left / "audit/log").read_bytes()
    assert (len(acknowledged), len(seen) > 100, cuts > 0) == (36, True, True)


def test_a_disk_that_fails_ends_the_log_until_it_is_opened_again(tmp_path: Path, preloaded: dict[str, str]) -> None:
    failed = 0
    for run in json.loads(_run(preloaded, "errors", tmp_path)):
        data, acknowledged = Path(run["folder"]), run["acknowledged"]
        assert set(run["errors"]) <= {"ReadOnlyError"}
        assert not run["errors"] or acknowledged == list(range(len(acknowledged))), "an entry passed after a failure"
        failed += bool(run["errors"])
        open_audit_log(data, kek()).close()
        assert _numbers(data)[: len(acknowledged)] == acknowledged
        assert not verify(data / "audit").problem
    assert failed > 40
