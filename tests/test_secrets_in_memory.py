"""Secrets: overwritten in memory when closed; never printed, pickled, copied, compared; a fork harms nobody.

What is planted, used and looked for is in tests/planted_secrets.py. Nothing is claimed of what Python or OpenSSL copy:
keys derived from the root key, vectors of the caller, passphrases (docs/keys.md).
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import pickle
import secrets
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client import CollectionKey
from he_client.key_sharing import Identity
from he_client.keyring import PassphraseLock
from he_client.signing import KeyHolder
from he_engine.errors import InvalidInput, SecretReuseError
from he_engine.keys import RootKey, Secret
from he_server.storage.kek import PassphraseKek, SecretKek
from tests.engine_fixture import Both
from tests.planted_secrets import MASK

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    root, path = secrets.token_bytes(32), tmp_path_factory.mktemp("planted") / "a.key"
    CollectionKey(root).save(path, "horse")
    masked = bytes(byte ^ MASK for byte in root)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.planted_secrets", str(path), masked.hex()],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


@pytest.mark.parametrize("name", ["root key", "block secret", "query secret"])
def test_nothing_is_left_after_close(planted: dict[str, list[int]], name: str) -> None:
    *in_use, closed = planted[name]
    assert min(in_use) > 0, "found while in use: the search would notice"
    assert closed == 0


def _secrets(folder: Path) -> dict[str, Any]:
    both = Both(folder, "compact", 16)
    _, segment, _ = both.setup(np.full((5, 16), 0.25))
    return {
        "root key": RootKey(bytes(range(32))),
        "collection key": CollectionKey(bytes(range(32))),
        "identity": Identity(bytes(range(32))),
        "key holder": KeyHolder(RootKey(bytes(range(32))), bytes(16)),
        "client engine": both.client,
        "query": both.client.query(np.full(16, 0.25)),
        "segment": segment,
        "passphrase": PassphraseLock("horse"),
        "server's passphrase": PassphraseKek(b"horse"),
        "server's key": SecretKek(RootKey(bytes(range(32)))),
    }


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _secrets(tmp_path_factory.mktemp("held"))


NAMES = [
    *("root key", "collection key", "identity", "key holder", "client engine", "query", "segment"),
    *("passphrase", "server's passphrase", "server's key"),
]
COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": pickle.dumps,
    "pickle 0": lambda secret: pickle.dumps(secret, 0),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "within a list": lambda secret: pickle.dumps([secret]),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", COPIES)
def test_no_secret_is_copied(held: dict[str, Any], name: str, how: str) -> None:
    with pytest.raises(SecretReuseError):
        COPIES[how](held[name])


@pytest.mark.parametrize("name", NAMES)
def test_no_secret_is_printed(held: dict[str, Any], name: str) -> None:
    secret = held[name]
    bare = f"<{type(secret).__name__}>"
    assert {repr(secret), str(secret), f"{secret}", f"{secret!r}", "%s" % secret} == {bare}  # noqa: UP031
    with pytest.raises(TypeError):
        json.dumps(secret)
    with pytest.raises(TypeError):
        bytes(secret)
    with pytest.raises(TypeError):
        format(secret, "x")


@pytest.mark.parametrize("name", NAMES)
def test_secrets_are_equal_to_themselves_alone(held: dict[str, Any], tmp_path: Path, name: str) -> None:
    """Comparing by content would tell how long two agree."""
    secret, other = held[name], _secrets(tmp_path)[name]
    assert secret == secret
    assert secret != other
    assert type(secret).__eq__ is object.__eq__
    with pytest.raises(TypeError):
        sorted([secret, other])


def _kinds(base: type[Secret]) -> set[type[Secret]]:
    return {base}.union(*(_kinds(kind) for kind in base.__subclasses__()))


def test_no_kind_of_secret_takes_a_refusal_back() -> None:
    """Also those of which no object is made above: a dataclass, say, brings a comparison and a repr of its own."""
    for top in ("he_engine", "server/he_server", "client/he_client"):
        for path in (ROOT / top).rglob("*.py"):
            if "Secret" in path.read_text():
                parts = path.relative_to(ROOT / top).with_suffix("").parts
                importlib.import_module(".".join((Path(top).name, *parts)).removesuffix(".__init__"))
    kinds = {kind for kind in _kinds(Secret) if kind.__module__.startswith("he_")}
    assert len(kinds) >= 20
    for kind in kinds:
        assert kind.__eq__ is object.__eq__ and kind.__hash__ is object.__hash__, kind
        for refusal in ("__repr__", "__reduce_ex__", "__copy__", "__deepcopy__"):
            assert getattr(kind, refusal) is getattr(Secret, refusal), (kind, refusal)


def test_a_closed_key_does_nothing_more(tmp_path: Path) -> None:
    key = CollectionKey.generate()
    key.close()
    key.close()
    with pytest.raises(SecretReuseError):
        key.derive("x")
    with pytest.raises(InvalidInput):
        key.reveal()
    with pytest.raises(InvalidInput):
        key.save(tmp_path / "x", "horse")


def test_no_secret_in_a_traceback(held: dict[str, Any]) -> None:
    try:
        held["collection key"].derive(None)
    except Exception as error:
        told = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "CollectionKey" in told
    assert bytes(range(32)).hex() not in told
    assert repr(bytes(range(32)))[2:-1] not in told


def test_a_fork_closes_only_its_own_copy(tmp_path: Path) -> None:
    """The child overwrites its memory; the parent's key, engine and query go on, and what they encrypt differs."""
    both = Both(tmp_path, "compact", 16)
    rows = np.full((5, 16), 0.25)
    _, segment, index = both.setup(rows)
    query = both.client.query(rows[0])
    reader, writer = os.pipe()
    if not (child := os.fork()):
        signal.alarm(20)  # ends a child that hangs on what another thread of its parent held
        try:
            mine = both.client.query(rows[0])
            os.write(writer, bytes(mine.ciphertext[:32]))
            query.close()
            both.client.close()
            both.key.close()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        theirs = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert len(theirs) == 32
    assert bytes(both.client.query(rows[0]).ciphertext[:32]) != theirs
    (scores,) = both.client.recover(query, [segment], [both.answer(query, index)])
    assert np.allclose(scores, 1.0, atol=0.01)
