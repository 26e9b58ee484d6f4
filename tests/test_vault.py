"""The vault: every value comes back, under its key alone, after crashes, and with other processes at work."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from he_client import (
    AlreadyExists,
    FormatVersionError,
    HesearchError,
    InvalidInput,
    NotFound,
    RollbackError,
    SecretReuseError,
    TamperedDataError,
    WrongKeyError,
)
from he_client.protect.text import Vault, VaultKey
from he_client.protect.text.vault import MAGIC, TOKEN

KEY = VaultKey(bytes(range(32)))
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notes.vault"


@pytest.fixture
def vault(path: Path) -> Vault:
    return Vault.create(path, KEY)


def test_values_come_back(vault: Vault, path: Path) -> None:
    first, second, third = vault.tokens("PERSON", ["Anna Meyer", "anna meyer", "Anna Meyer"])
    assert first == third != second and TOKEN.fullmatch(first) and first.startswith("[PERSON:")
    (place,) = vault.tokens("LOCATION", ["Anna Meyer"])
    assert len({first, second, place}) == len(vault) == 3
    text = f"{first}{second} saw {place}; {first}"
    for opened in (vault, Vault.open(path, KEY)):
        assert opened.reveal(text) == "Anna Meyeranna meyer saw Anna Meyer; Anna Meyer"
        assert opened.tokens("PERSON", ["Anna Meyer"]) == [first]


def test_a_vault_behind_a_link_is_the_same_vault(vault: Vault, path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.vault"
    link.symlink_to(path)
    (token,) = Vault.open(link, KEY).tokens("PERSON", ["Anna Meyer"])
    assert link.is_symlink() and Vault.open(path, KEY).reveal(token) == "Anna Meyer"
    assert vault.tokens("PERSON", ["Anna Meyer"]) == [token]
    with pytest.raises(AlreadyExists):
        Vault.create(link, KEY)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(st.characters(), min_size=1), max_size=8))
def test_any_value(vault: Vault, path: Path, values: list[str]) -> None:
    tokens = vault.tokens("ANY", values)
    assert [Vault.open(path, KEY).reveal(token) for token in tokens] == values


def test_tokens_of_others_stay(vault: Vault, tmp_path: Path) -> None:
    other = Vault.create(tmp_path / "other", KEY)
    (ours,), (theirs,) = vault.tokens("PERSON", ["Anna"]), other.tokens("PERSON", ["Ben"])
    text = f"{ours} and {theirs}, [PERSON], [PERSON:short]"
    assert vault.reveal(text) == f"Anna and {theirs}, [PERSON], [PERSON:short]"
    assert vault.unknown(text) == [theirs]


def test_a_value_that_looks_like_a_token_is_put_back_once(vault: Vault) -> None:
    (inner,) = vault.tokens("PERSON", ["Anna"])
    (outer,) = vault.tokens("NOTE", [inner])
    assert vault.reveal(outer) == inner


def test_the_file_is_private_and_shows_nothing(vault: Vault, path: Path) -> None:
    (token,) = vault.tokens("PERSON", ["Anna Meyer"])
    raw = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert raw.startswith(MAGIC + KEY.key_id.encode() + b"\n")
    for part in (b"Anna", token.encode(), b"PERSON", b"entries", bytes(KEY.reveal())):
        assert part not in raw


@pytest.mark.parametrize("bad", [("person", ["x"]), ("", ["x"]), ("A B", ["x"]), ("PERSON", ["x", ""])])
def test_bad_input_changes_nothing(vault: Vault, path: Path, bad: tuple[str, list[str]]) -> None:
    before = path.read_bytes()
    with pytest.raises(InvalidInput):
        vault.tokens(*bad)
    assert path.read_bytes() == before and len(vault) == 0


def test_what_is_there_and_what_is_not(vault: Vault, path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(AlreadyExists):
        Vault.create(path, KEY)
    assert path.read_bytes() == before
    with pytest.raises(NotFound):
        Vault.open(tmp_path / "absent", KEY)
    with pytest.raises(NotFound):
        Vault.create(tmp_path / "no folder" / "vault", KEY)
    path.unlink()
    with pytest.raises(NotFound):
        vault.tokens("PERSON", ["Anna"])


def test_secrets_are_not_shown(vault: Vault) -> None:
    vault.tokens("PERSON", ["Anna"])
    assert repr(vault) == "<Vault>"
    with pytest.raises(SecretReuseError):
        pickle.dumps(vault)


# ---- altered files ---------------------------------------------------------------------------------------
def test_every_altered_byte_is_an_error(vault: Vault, path: Path) -> None:
    vault.tokens("PERSON", ["Anna"])
    raw = path.read_bytes()
    for at in range(len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises((TamperedDataError, WrongKeyError, FormatVersionError)) as raised:
            Vault.open(path, KEY)
        if at >= len(MAGIC) + 17:
            assert type(raised.value) is TamperedDataError
        assert "Anna" not in str(raised.value)


def test_every_cut_file_is_an_error(vault: Vault, path: Path) -> None:
    vault.tokens("PERSON", ["Anna"])
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises((TamperedDataError, FormatVersionError)):
            Vault.open(path, KEY)
    path.write_bytes(raw + b"\0")
    with pytest.raises(TamperedDataError):
        Vault.open(path, KEY)


def test_another_key(vault: Vault, path: Path) -> None:
    vault.tokens("PERSON", ["Anna"])
    with pytest.raises(WrongKeyError):
        Vault.open(path, VaultKey.generate())


def test_an_older_file_is_noticed_by_who_saw_a_newer_one(vault: Vault, path: Path) -> None:
    vault.tokens("PERSON", ["Anna"])
    older = path.read_bytes()
    (token,) = vault.tokens("PERSON", ["Ben"])
    path.write_bytes(older)
    with pytest.raises(RollbackError):
        vault.tokens("PERSON", ["Carl"])
    assert path.read_bytes() == older
    forked = Vault.open(path, KEY)
    forked.tokens("PERSON", ["Dora"])
    with pytest.raises(RollbackError):
        vault.unknown("[PERSON:bbbbbbbbbbbbbbbb]")
    assert vault.reveal(token) == "Ben"


# ---- several writers -------------------------------------------------------------------------------------
def _values(writer: int) -> list[str]:
    """Thirty of its own, thirty that all have."""
    return [name for i in range(30) for name in (f"own {writer} {i}", f"shared {i}")]


def _write(vault: Vault, writer: int, results: Callable[[tuple[str, str]], object]) -> None:
    for value in _values(writer):
        (token,) = vault.tokens("PERSON", [value])
        results((value, token))


def _agree(vault: Vault, written: list[tuple[str, str]]) -> None:
    tokens = dict(written)
    assert len(written) == 4 * 60 and len(tokens) == len(set(tokens.values())) == 4 * 30 + 30
    assert set(written) == set(tokens.items()), "a shared value has one token"
    assert all(vault.reveal(token) == value for value, token in written)


def test_threads(vault: Vault, path: Path) -> None:
    written: list[tuple[str, str]] = []
    threads = [threading.Thread(target=_write, args=(vault, writer, written.append)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _agree(Vault.open(path, KEY), written)


def test_forked_processes_share_a_vault(vault: Vault) -> None:
    """Each child goes on with its parent's open vault."""
    queue = FORK.SimpleQueue()
    children = [FORK.Process(target=_write, args=(vault, writer, queue.put)) for writer in range(4)]
    for child in children:
        child.start()
    written = [queue.get() for _ in range(4 * 60)]
    for child in children:
        child.join()
        assert child.exitcode == 0
    _agree(vault, written)


WRITER = """
import sys
from he_client.protect.text import Vault, VaultKey
vault = Vault.open(sys.argv[1], VaultKey(bytes(range(32))))
for number in range(int(sys.argv[2]), 1 << 30):
    print(number, *vault.tokens("PERSON", [f"value {number}"]), flush=True)
"""


@pytest.mark.parametrize("lines", [1, 2, 7, 40])
def test_what_was_said_to_be_stored_survives_a_kill(path: Path, lines: int) -> None:
    """Two writers, both killed while they write."""
    Vault.create(path, KEY)
    written = []
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, str(n)], stdout=subprocess.PIPE, text=True)
        for n in (0, 1 << 20)
    ]
    for writer in writers:
        assert writer.stdout is not None
        written += [writer.stdout.readline().split() for _ in range(lines)]
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        assert writer.stdout is not None
        written += [line.split() for line in writer.stdout.read().splitlines() if re.fullmatch(r"\d+ \[.*\]", line)]
        writer.wait()
    opened = Vault.open(path, KEY)
    assert all(opened.reveal(token) == f"value {number}" for number, token in written)
    assert opened.tokens("PERSON", ["value 0"]) == [written[0][1]]
    opened.tokens("PERSON", ["one more"])


def test_a_full_disk_loses_nothing(vault: Vault, path: Path) -> None:
    """The file size limit of a child process stands for it."""
    (token,) = vault.tokens("PERSON", ["Anna"])
    before = path.read_bytes()
    pid = os.fork()
    if not pid:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (256, 256))
        try:
            vault.tokens("PERSON", ["x" * 1000])
        except HesearchError as error:
            os._exit(0 if "File too large" in str(error) and "xxx" not in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir() if entry != path] == [f"{path.name}.lock"]
    assert Vault.open(path, KEY).reveal(token) == "Anna"
