"""The key ring: three locks, each opens only what it sealed; no file chooses a program; nothing is overwritten."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import keyring
import pytest
from keyring.backend import KeyringBackend

from he_client import AlreadyExists, CollectionKey, FormatVersionError, InvalidInput, NotFound, WrongKeyError
from he_client.cli import main
from he_client.keyring import KeyRing, KeyringLock, Lock, PassphraseLock, ProgramLock, load_key
from he_engine.errors import Unavailable

LOCKS = ["passphrase", "keyring", "exec"]
PROGRAM = """#!/bin/sh
echo "$1" >> "$0.log"
read -r line
echo "$line" | tr 0123456789abcdef fedcba9876543210
"""


class Backend(KeyringBackend):
    """The library's interface, with a dictionary behind it."""

    priority = 1.0  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.entries: dict[tuple[str, str], str] = {}

    def set_password(self, service: str, username: str, password: str) -> None:
        self.entries[service, username] = password

    def get_password(self, service: str, username: str) -> str | None:
        return self.entries.get((service, username))

    def delete_password(self, service: str, username: str) -> None:
        del self.entries[service, username]


@pytest.fixture
def backend() -> Iterator[Backend]:
    before, ours = keyring.get_keyring(), Backend()
    keyring.set_keyring(ours)
    yield ours
    keyring.set_keyring(before)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "kms"
    path.write_text(PROGRAM)
    path.chmod(0o700)
    return path


@pytest.fixture
def locks(backend: Backend, program: Path) -> dict[str, Lock]:
    assert keyring.get_keyring() is backend
    return {"passphrase": PassphraseLock("horse"), "keyring": KeyringLock(), "exec": ProgramLock(str(program))}


@pytest.mark.parametrize("name", LOCKS)
def test_round_trip(locks: dict[str, Lock], tmp_path: Path, name: str) -> None:
    ring, key = KeyRing(tmp_path / "ring"), CollectionKey.generate()
    ring.add("notes", key, locks[name])
    assert ring.names() == ["notes"]
    assert ring.open("notes", locks[name]).derive("x") == key.derive("x")
    assert stat.S_IMODE(ring.path("notes").stat().st_mode) == 0o600
    assert stat.S_IMODE(ring.folder.stat().st_mode) == 0o700
    assert key.reveal().hex() not in ring.path("notes").read_text()
    with pytest.raises(AlreadyExists):
        ring.add("notes", CollectionKey.generate(), locks[name])
    assert ring.open("notes", locks[name]).key_id == key.key_id
    assert [path.name for path in ring.folder.iterdir()] == ["notes.key"]


@pytest.mark.parametrize("name", LOCKS)
@pytest.mark.parametrize("other", LOCKS)
def test_no_lock_opens_what_another_sealed(locks: dict[str, Lock], tmp_path: Path, name: str, other: str) -> None:
    locks[name].save(CollectionKey.generate(), tmp_path / "a.key")
    if name != other:
        with pytest.raises(FormatVersionError):
            locks[other].load(CollectionKey, tmp_path / "a.key")


@pytest.mark.parametrize("name", ["keyring", "exec"])
def test_every_altered_field_is_noticed(locks: dict[str, Lock], tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.key"
    locks[name].save(CollectionKey.generate(), path)
    fields = json.loads(path.read_text())
    for field in fields:
        changed = dict(fields)
        if field == "version":
            changed[field] = 3
        elif field in ("format", "lock"):
            changed[field] = {"format": "hesearch identity", "lock": "exec" if name == "keyring" else "keyring"}[field]
        else:
            changed[field] = f"{int(fields[field][0], 16) ^ 1:x}{fields[field][1:]}"
        path.write_text(json.dumps(changed))
        with pytest.raises((WrongKeyError, FormatVersionError)):
            locks[name].load(CollectionKey, path)
    for bad in ({**fields, "more": 1}, {f: fields[f] for f in fields if f != "entry"}, [fields], "x", {}):
        path.write_text(json.dumps(bad))
        with pytest.raises(FormatVersionError):
            locks[name].load(CollectionKey, path)


def test_file_and_entry_open_the_key_together(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    KeyringLock().save(CollectionKey.generate(), path)
    ((entry, secret),) = backend.entries.items()
    assert secret not in path.read_text()
    backend.entries[entry] = "00" * 32
    with pytest.raises(WrongKeyError):
        KeyringLock().load(CollectionKey, path)
    backend.entries.clear()
    with pytest.raises(WrongKeyError):
        KeyringLock().load(CollectionKey, path)


def test_what_could_not_be_written_leaves_no_entry(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        KeyringLock().save(CollectionKey.generate(), tmp_path / "none" / "a.key")
    assert not backend.entries


def test_a_keyring_that_keeps_nothing_is_noticed(backend: Backend, tmp_path: Path) -> None:
    backend.set_password = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        KeyringLock().save(CollectionKey.generate(), tmp_path / "a.key")
    keyring.set_keyring(keyring.backends.fail.Keyring())
    with pytest.raises(Unavailable):
        KeyringLock().save(CollectionKey.generate(), tmp_path / "a.key")
    assert not (tmp_path / "a.key").exists()


def test_a_file_does_not_choose_the_program(program: Path, tmp_path: Path) -> None:
    """Whatever the file says, nothing is run unless it is named by who opens it."""
    path = tmp_path / "a.key"
    ProgramLock(str(program)).save(CollectionKey.generate(), path)
    log = Path(f"{program}.log")
    assert log.read_text() == "wrap\n"
    assert str(program) not in path.read_text()
    with pytest.raises(InvalidInput):
        load_key(CollectionKey, path, lambda _: "", None)
    assert log.read_text() == "wrap\n"


@pytest.mark.parametrize("script", ["exit 3", "echo zz", "cat >/dev/null; echo 00"])
def test_programs_that_fail(tmp_path: Path, program: Path, script: str) -> None:
    path = tmp_path / "a.key"
    ProgramLock(str(program)).save(CollectionKey.generate(), path)
    program.write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises((Unavailable, WrongKeyError)):
        ProgramLock(str(program)).load(CollectionKey, path)
    with pytest.raises(Unavailable):
        ProgramLock(str(tmp_path / "none")).load(CollectionKey, path)


@pytest.mark.parametrize("name", ["", "../x", ".x", "a/b", "x" * 129, "a\n"])
def test_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput):
        KeyRing(tmp_path).path(name)


@pytest.mark.usefixtures("backend")
def test_command_line(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HESEARCH_KEYS", str(tmp_path / "ring"))
    (tmp_path / "pass").write_text("horse\n")
    key, passphrase = str(tmp_path / "notes.key"), ["--passphrase-file", str(tmp_path / "pass")]
    assert main(["keygen", key, *passphrase]) == 0
    assert main(["key", "lock", key, "ring:notes", "--lock", "keyring", *passphrase]) == 0
    assert main(["key", "lock", "ring:notes", "ring:kms", "--lock", f"exec:{program}"]) == 0
    assert main(["key", "lock", "ring:kms", "ring:again", "--key-program", str(program),
                 "--new-passphrase-file", str(tmp_path / "pass")]) == 0  # fmt: skip
    capsys.readouterr()
    assert main(["key", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"keys": ["again", "kms", "notes"]}
    server = ["--server", str(tmp_path / "data"), "--state", str(tmp_path / "state")]
    assert main(["create", "notes", "--dim", "4", "--key", "ring:notes", *server]) == 0
    assert main(["delete", "notes", "7", "--key", "ring:kms", "--key-program", str(program), *server]) != 5
    assert main(["delete", "notes", "7", "--key", "ring:kms", *server]) == 2
    assert main(["key", "new", "ring:other", "--lock", "keyring"]) == 0
    assert main(["delete", "notes", "7", "--key", "ring:other", *server]) == 5
    assert main(["key", "new", "ring:other", "--lock", "keyring"]) == 4
