"""The same federation as separate processes: an aggregator and hospitals, over TLS on 127.0.0.1.

common/        setting.json, participants.json (public identities), ca.pem         everybody has it
aggregator/    server.pem, server.key                                              the aggregator alone
hospital-N/    identity.key, shared.key (sealed to that identity)                  that hospital alone
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from examples.federated.setting import Setting
from he_client import CollectionKey
from he_client.key_sharing import Identity, share_key
from he_server.access.dev_certificates import make

PATIENCE_S = 300
ROOT = Path(__file__).resolve().parents[2]


def run(
    setting: Setting, values: int, folder: Path, key: CollectionKey, look: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Train in processes of their own, all ended when this returns; `folder` must be empty.

    values: of the model. look: is called with the aggregator's process id when training is over and it still lives.
    """
    passphrases = prepare(setting, folder, key)
    address = f"127.0.0.1:{free_port()}"
    common = ["--common", str(folder / "common")]
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        own = ["--own", str(folder / "aggregator"), "--values", str(values), "--listen", address]
        aggregator = stack.enter_context(_process(folder / "aggregator.log", "aggregator", *common, *own))
        hospitals = []
        for number, name in enumerate(setting.names):
            own = ["--own", str(folder / name), "--number", str(number), "--aggregator", address]
            hospitals.append(stack.enter_context(_process(folder / f"{name}.log", "hospital", *common, *own)))
        for hospital, passphrase in zip(hospitals, passphrases, strict=True):
            assert hospital.stdin is not None
            hospital.stdin.write(passphrase + "\n")
            hospital.stdin.flush()
        for hospital in hospitals:
            _ended(hospital)
        assert aggregator.stdout is not None
        aggregator.stdout.readline()
        if look is not None:
            look(aggregator.pid)
        _ended(aggregator)
    seconds = time.perf_counter() - start
    told, *hospitals_told = (
        json.loads((folder / name / "result.json").read_text()) for name in ("aggregator", *setting.names)
    )
    return {"seconds": seconds, "aggregator": told, "hospitals": hospitals_told}


def prepare(setting: Setting, folder: Path, key: CollectionKey) -> list[str]:
    """Writes everybody's files; the passphrase of each hospital's identity."""
    for name in ("common", "aggregator", *setting.names):
        (folder / name).mkdir()
    setting.save(folder / "common" / "setting.json")
    make(folder / "certs", [])
    (folder / "certs" / "ca.pem").rename(folder / "common" / "ca.pem")
    for file in ("server.pem", "server.key"):
        (folder / "certs" / file).rename(folder / "aggregator" / file)
    identities = {name: Identity.generate() for name in setting.names}
    people = {
        name: {"identity": str(identity.public), "signs": identity.public.signing.hex()}
        for name, identity in identities.items()
    }
    (folder / "common" / "participants.json").write_text(json.dumps(people, indent=1))
    passphrases = []
    for name, identity in identities.items():
        passphrases.append(secrets.token_hex(16))
        identity.save(folder / name / "identity.key", passphrases[-1])
        share_key(key, identities[setting.names[0]], identity.public, folder / name / "shared.key")
    return passphrases


@contextlib.contextmanager
def _process(log: Path, module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", f"examples.federated.{module}", *arguments]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()  # nothing where it has ended, as it does by itself when all went well


def _ended(process: subprocess.Popen[str]) -> None:
    """By itself, and well."""
    process.communicate(timeout=PATIENCE_S)
    if process.returncode:
        raise RuntimeError(f"{process.args!r}: exit code {process.returncode}")


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
