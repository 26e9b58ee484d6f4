"""Audit logs, their heads and keys, as an auditor checks them and as a server opens them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from random import Random

from he_server.audit.entry import START
from he_server.audit.heads import HEAD, Head
from he_server.audit.keys import KEYS, open_keys, read_sealing_key
from he_server.audit.log import FOLDER, open_audit_log
from he_server.audit.reading import LOG, entries
from he_server.audit.verify import verify
from tests.audit_fixture import entry, kek
from tests.fuzz.formats import MIB
from tests.fuzz.mutate import mutate_bytes, mutate_json, mutate_text
from tests.fuzz.target import Target, scratch

_LINE = re.compile(rb'\{"hash":"[^"]*","previous":"[^"]*",("sequence":.*\})', re.DOTALL)
_FILES = (LOG, HEAD, KEYS)


def _chained(log: bytes) -> bytes:
    """The same lines, each with the hash that is right for it and for those before it."""
    previous, lines = START.hex().encode(), []
    for line in log.split(b"\n"):
        if match := _LINE.fullmatch(line):
            body = b'"previous":"%s",%s' % (previous, match[1])
            previous = hashlib.sha256(body).hexdigest().encode()
            line = b'{"hash":"%s",%s' % (previous, body)
        lines.append(line)
    return b"\n".join(lines)


class _Log:
    """A log of some entries; `verify`, `entries` and opening it, on whatever its files are."""

    def __init__(self, *, sealed: bool) -> None:
        self.data = scratch()
        self.folder = self.data / FOLDER
        self.kek = kek() if sealed else None
        for start in (0, 2):
            with open_audit_log(self.data, self.kek) as log:
                for number in range(start, start + 2):
                    log.append(entry(number))
        self.files = {name: (self.folder / name).read_bytes() for name in _FILES}
        self.head = Head.parse(self.files[HEAD])
        self.signer, _ = open_keys(self.folder, self.kek)

    def put(self, **changed: bytes) -> None:
        for path in self.folder.iterdir():
            if path.name not in _FILES and path.is_file():
                path.unlink()
        for name, content in {**self.files, **changed}.items():
            (self.folder / name).write_bytes(content)

    def signed(self, head: bytes) -> bytes:
        """The same head with a signature that is right for it."""
        try:
            said = json.loads(head)
            digest = bytes.fromhex(said["hash"])
            unsigned = Head(self.head.log_id, said["sequence"], said["end_bytes"], digest, said["time"])
            signature = self.signer.sign(unsigned._message())
            return Head(*(getattr(unsigned, name) for name in Head.__slots__[:-1]), signature).json()
        except Exception:
            return head


def _audit_target(name: str, run: Callable[[_Log, str, bytes], None], cost: int) -> Target:
    """The first byte says whether the log is sealed, and which of its files the rest is."""
    logs = [_Log(sealed=False), _Log(sealed=True)]

    def split(data: bytes) -> tuple[_Log, str, bytes]:
        kind = data[0] if data else 0
        return logs[kind & 1], _FILES[(kind >> 1) % 3], data[1:]

    def mutate(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
        log, file, content = split(data)
        change = {LOG: mutate_text, HEAD: mutate_json, KEYS: mutate_bytes}[file]
        return data[:1] + change(rng, content, [log.files[file]])

    def repair(data: bytes) -> bytes:
        log, file, content = split(data)
        return data[:1] + (_chained(content) if file == LOG else log.signed(content) if file == HEAD else content)

    def close() -> None:
        for log in logs:
            shutil.rmtree(log.data)

    return Target(
        name=name,
        run=lambda data: run(*split(data)),
        samples=[bytes([kind]) + logs[kind & 1].files[_FILES[kind >> 1]] for kind in range(6)],
        mutate=mutate,
        repair=repair,
        limit_bytes=4 * MIB,
        cost=cost,
        close=close,
    )


def log_target() -> Target:
    """Checked and read, as an auditor does who has an exported head: what passes is what was signed."""

    def run(log: _Log, file: str, content: bytes) -> None:
        log.put(**{file: content})
        problem = verify(log.folder, [log.head]).problem
        if not problem:
            raw = (log.folder / LOG).read_bytes()
            assert raw[: log.head.end_bytes] == log.files[LOG][: log.head.end_bytes], "every line up to the head"
        key = read_sealing_key(log.folder, log.kek) if log.kek else None
        for fields in entries(log.folder, key):
            assert fields["kind"] in ("begin", "cut", "entry", "sealed")

    return _audit_target("audit-log", run, 8)


def opened_target() -> Target:
    """Opened, as a server does, which goes on after the last sound line. It does not read what a head covers."""

    def run(log: _Log, file: str, content: bytes) -> None:
        log.put(**{file: content})
        raw, sound = (log.folder / LOG).read_bytes(), not verify(log.folder).problem
        with open_audit_log(log.data, log.kek) as opened:
            opened.append(entry(9))
        assert (log.folder / LOG).read_bytes()[: log.head.end_bytes] == raw[: log.head.end_bytes], "only ever longer"
        assert not (sound and verify(log.folder).problem)

    return _audit_target("audit-opened", run, 20)
