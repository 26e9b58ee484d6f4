"""The audit log: what it says, and that no change to it goes unseen against a head that was exported."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from he_client.cli import main
from he_engine.errors import (
    DamagedDataError,
    InvalidInput,
    NotFound,
    TamperedDataError,
    Unavailable,
    WrongKeyError,
)
from he_server.audit.entry import AuditEntry, Line
from he_server.audit.heads import Head, read_head
from he_server.audit.keys import read_sealing_key
from he_server.audit.log import open_audit_log
from he_server.audit.reading import entries
from he_server.audit.verify import verify
from he_server.storage.kek import new_kek_file, open_kek
from tests.audit_fixture import THREADS, entry, kek, run_threads

COUNT = 12  #: entries of the log that is tampered with; with the line that begins it 13 lines


def _appended(data: Path, count: int = COUNT, *, sealed: bool = False, first: int = 0) -> Head:
    with open_audit_log(data, kek() if sealed else None) as log:
        for of in range(first, first + count):
            log.append(entry(of))
        return log.head()


def _numbers(data: Path, sealed: bool = False) -> list[int]:
    key = read_sealing_key(data / "audit", kek()) if sealed else None
    return [int(of["request_id"], 16) for of in entries(data / "audit", key) if of["kind"] == "entry"]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "sealed"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Head]:
    """A data folder with a log that is closed, and the head that was exported then."""
    data = tmp_path_factory.mktemp("audit")
    return data, _appended(data, sealed=request.param)


@pytest.fixture
def copy(written: tuple[Path, Head], tmp_path: Path) -> tuple[Path, Head]:
    data = shutil.copytree(written[0], tmp_path / "data")
    return data, written[1]


def _lines(data: Path) -> list[bytes]:
    return (data / "audit" / "log").read_bytes().splitlines(keepends=True)


def _put(data: Path, lines: list[bytes]) -> None:
    (data / "audit" / "log").write_bytes(b"".join(lines))


def _chained_anew(lines: list[bytes]) -> list[bytes]:
    """As somebody would do it who knows all but the signing key."""
    out, previous = [], bytes(32)
    for sequence, line in enumerate(map(Line.parse, lines)):
        made = Line.make(previous, sequence, min(line.batch, sequence), line.kind, line.content)
        out.append(made.raw)
        previous = made.hash
    return out


# ---- what it says ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("sealed", [False, True])
def test_a_decision_is_one_line_that_says_who_what_and_why(tmp_path: Path, sealed: bool) -> None:
    with open_audit_log(tmp_path, kek() if sealed else None) as log:
        assert log.submit(entry(1)).result() == 1
        log.append(entry(3, None))
    key = read_sealing_key(tmp_path / "audit", kek()) if sealed else None
    begin, allowed, denied = entries(tmp_path / "audit", key)
    assert (begin["kind"], begin["format"], begin["log"]) == (
        "begin",
        1,
        read_head(tmp_path / "audit/head").log_id.hex(),
    )
    assert allowed["principal"] == {"name": "ada", "tenant": "acme", "via": "token"}
    assert (allowed["sequence"], allowed["allowed"], allowed["policies"]) == (1, True, ["searcher"])
    assert (allowed["action"], allowed["resource"]) == ("Search", "Collection/acme/notes")
    assert (allowed["request_bytes"], allowed["request_id"]) == (101, "00000001")
    assert (denied["principal"], denied["allowed"], denied["policies"]) == (None, False, [])
    assert begin["time"] <= allowed["time"] <= denied["time"]
    raw = (tmp_path / "audit/log").read_bytes()
    assert [json.loads(line)["sequence"] for line in raw.splitlines()] == [0, 1, 2]
    assert (b"acme" in raw, b"Search" in raw) == (not sealed, not sealed)
    if sealed:
        assert len({len(json.loads(line)["sealed"]) for line in raw.splitlines()[1:]}) == 1, "lengths tell of contents"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("action", 'Search"}'),
        ("action", ""),
        ("resource", "Collection/acme/no\ntes"),
        ("resource", "Collection/acme"),
        ("resource", "Collection/acme/né"),
        ("request_id", "xyz"),
    ],
)
def test_a_call_puts_no_text_of_its_own_into_the_log(field: str, value: str) -> None:
    good = {"principal": None, "action": "Search", "resource": "Server", "allowed": True, "policies": ()}
    good |= {"request_bytes": 1, "request_id": "00"}
    AuditEntry(**good)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput) as raised:
        AuditEntry(**(good | {field: value}))  # type: ignore[arg-type]
    assert not value or value not in str(raised.value)


def test_an_entry_that_is_too_long_is_refused_and_the_log_goes_on(tmp_path: Path) -> None:
    long = AuditEntry(
        principal=None, action="Search", resource="Server", allowed=True, policies=("p" * 100,) * 200,
        request_bytes=1, request_id="00",
    )  # fmt: skip
    with open_audit_log(tmp_path) as log:
        with pytest.raises(InvalidInput, match="bytes, expected at most"):
            log.append(long)
        log.append(entry(5))
    assert _numbers(tmp_path) == [5]


# ---- tampering, against an exported head -----------------------------------------------------------------
def test_an_untouched_log_is_clean_and_proven(written: tuple[Path, Head]) -> None:
    found = verify(written[0] / "audit", [written[1]])
    assert (found.problem, found.sequence, found.note) == ("", None, "")
    assert (found.lines, found.covered, found.proven) == (COUNT + 1, COUNT, COUNT)


def test_every_single_byte_counts(written: tuple[Path, Head], tmp_path: Path) -> None:
    """Its lowest bit and its highest one; and the line that is named is the one it is in, or the next, which lost its
    predecessor's end."""
    data, head = shutil.copytree(written[0], tmp_path / "data"), written[1]
    lines = _lines(data)
    raw, at = b"".join(lines), random.Random(1)
    starts = [sum(map(len, lines[:number])) for number in range(len(lines))]
    for offset in at.sample(range(len(raw)), 300) + [start - 1 for start in starts[1:]] + [len(raw) - 1]:
        for bit in (1, 128):
            altered = bytearray(raw)
            altered[offset] ^= bit
            (data / "audit/log").write_bytes(altered)
            found = verify(data / "audit", [head])
            assert found.problem
            assert found.sequence == sum(start <= offset for start in starts) - 1


def test_a_line_that_is_gone_moved_or_added_is_named(copy: tuple[Path, Head]) -> None:
    data, head = copy
    lines = _lines(data)
    swapped = [*lines[:4], lines[5], lines[4], *lines[6:]]
    for altered, wrong in [
        (lines[:5] + lines[6:], 5),
        (lines[1:], 0),
        (swapped, 4),
        ([*lines[:7], lines[6], *lines[7:]], 7),
        ([*lines[:7], b'{"hash":"x"}\n', *lines[7:]], 7),
        (lines[:-1], COUNT),
        (lines[:3], 3),
        ([*lines[:-1], lines[-1][:-1]], COUNT),
        ([], 0),
    ]:
        _put(data, altered)
        found = verify(data / "audit", [head])
        assert found.problem
        assert found.sequence == wrong


def test_a_line_of_which_only_the_hash_was_made_anew_breaks_the_chain(copy: tuple[Path, Head]) -> None:
    """Its own hash fits, and so do all other lines and the head."""
    data, head = copy
    lines = _lines(data)
    old = Line.parse(lines[3])
    lines[3] = Line.make(old.previous, 3, old.batch, "entry", entry(7).json()).raw
    _put(data, lines)
    found = verify(data / "audit", [head])
    assert (found.sequence, found.covered) == (4, -1)
    assert "one of the two was changed" in found.problem
    with pytest.raises(TamperedDataError, match="line 4"):
        _numbers(data, sealed=b'"sealed"' in b"".join(lines[4:]))


def test_a_chain_made_anew_is_not_the_one_that_was_signed(copy: tuple[Path, Head]) -> None:
    """By somebody who knows no key: the newest head is as it was, or is gone."""
    data, head = copy
    lines = _lines(data)
    for altered in [
        lines[:5] + lines[6:],
        [*lines[:4], lines[5], lines[4], *lines[6:]],
        [*lines[:4], lines[2], *lines[5:]],
    ]:
        _put(data, _chained_anew(altered))
        found = verify(data / "audit", [head])
        assert found.problem
        assert found.sequence is not None
    longer = _chained_anew([*lines, lines[-1]])
    _put(data, longer)
    assert not verify(data / "audit", [head]).problem, "what comes after a head is not proven by it"
    (data / "audit/head").unlink()
    assert "head" in verify(data / "audit", [head]).problem


def test_numbers_without_gaps(tmp_path: Path) -> None:
    head = _appended(tmp_path, 2)
    with (tmp_path / "audit/log").open("ab") as file:
        file.write(Line.make(head.hash, 4, 4, "entry", "{}").raw)
    assert verify(tmp_path / "audit").problem == "line 3: in its place is line 4"


def test_heads_in_between_say_where_a_chain_was_made_anew(tmp_path: Path) -> None:
    heads = [_appended(tmp_path, 4, first=4 * life) for life in range(3)]
    lines = _lines(tmp_path)
    changed = Line.parse(lines[6])
    lines[6] = Line.make(changed.previous, 6, changed.batch, "entry", changed.content.replace("true", "false")).raw
    _put(tmp_path, _chained_anew(lines))
    found = verify(tmp_path / "audit", heads)
    assert (found.sequence, found.proven) == (heads[1].sequence, heads[0].sequence)
    assert f"after line {heads[0].sequence}" in found.problem


def test_a_forged_head_and_another_key_are_seen(copy: tuple[Path, Head], tmp_path: Path) -> None:
    data, head = copy
    path = data / "audit/head"
    fields = json.loads(path.read_bytes())
    for name, value in [("sequence", 3), ("hash", "00" * 32), ("time", "2020"), ("end_bytes", 7), ("log", "00" * 32)]:
        path.write_text(json.dumps(fields | {name: value}, separators=(",", ":")) + "\n")
        assert "signature" in verify(data / "audit", [head]).problem
        with pytest.raises(TamperedDataError, match="signature"):
            read_head(path)
    other = Head.sign(Ed25519PrivateKey.generate(), head.sequence, head.end_bytes, head.hash)
    path.write_bytes(other.json())
    assert verify(data / "audit", [head]).sequence == 0
    assert verify(data / "audit").sequence == 0
    _appended(tmp_path / "another", COUNT)
    found = verify(tmp_path / "another/audit", [head])
    assert (found.sequence, found.problem) == (0, "line 0: it begins another log than the heads are of")


@pytest.mark.parametrize("field", ["sequence", "end_bytes", "time"])
def test_a_head_whose_fields_are_of_another_type_is_none(field: str) -> None:
    """However well it is signed: whoever has any key can make one."""
    signer = Ed25519PrivateKey.generate()
    right = Head.sign(signer, 4, 2000, bytes(32))
    assert Head.parse(right.json()) == right
    wrong = replace(right, **{field: 4 if field == "time" else "4"})
    wrong = replace(wrong, signature=signer.sign(wrong._message()))
    with pytest.raises(TamperedDataError):
        Head.parse(wrong.json())


@pytest.mark.parametrize(("sequence", "end_bytes"), [(4, 1 << 63), (4, (1 << 64) - 1), (1 << 63, 2000)])
def test_a_head_beyond_every_file(sequence: int, end_bytes: int) -> None:
    """Signed, and yet none."""
    head = Head.sign(Ed25519PrivateKey.generate(), sequence, end_bytes, bytes(32))
    with pytest.raises(TamperedDataError, match="none of an audit log"):
        Head.parse(head.json())


def test_a_log_that_was_rolled_back_and_went_on_does_not_match(copy: tuple[Path, Head], tmp_path: Path) -> None:
    """A whole older state, keys and head with it: only what was exported shows it."""
    data, _ = copy
    old = shutil.copytree(data, tmp_path / "old")
    sealed = b'"sealed"' in (data / "audit/log").read_bytes()
    head = _appended(data, 2, first=100, sealed=sealed)
    again = _appended(old, 5, first=200, sealed=sealed)
    assert again.log_id == head.log_id
    assert not verify(old / "audit").problem
    assert verify(old / "audit", [head]).sequence == head.sequence
    assert verify(data / "audit", [head]).proven == head.sequence


def _cut(lines: list[bytes], first: int, second: int) -> list[bytes]:
    return lines[: min(first, second)] + lines[max(first, second) + 1 :]


def _swap(lines: list[bytes], first: int, second: int) -> list[bytes]:
    lines[first], lines[second] = lines[second], lines[first]
    return lines


def _repeat(lines: list[bytes], first: int, second: int) -> list[bytes]:
    return [*lines[:first], lines[second], *lines[first:]]


def _replace(lines: list[bytes], first: int, second: int) -> list[bytes]:
    lines[first] = lines[second]
    return lines


def _noise(lines: list[bytes], first: int, second: int) -> list[bytes]:
    lines[first] = random.Random(second).randbytes(len(lines[first]) - 1) + b"\n"
    return lines


def _truncate(lines: list[bytes], first: int, second: int) -> list[bytes]:
    raw = b"".join(lines[: first + 1])
    return [raw[: len(raw) - 1 - second]]


TAMPERS = (_cut, _swap, _repeat, _replace, _noise, _truncate)
_places = st.integers(0, COUNT)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(TAMPERS), _places, _places), min_size=1, max_size=4), st.booleans())
@example([(_repeat, 0, 0)], False)
@example([(_truncate, COUNT, 0)], False)
def test_no_tampering_goes_unseen(
    written: tuple[Path, Head],
    tmp_path_factory: pytest.TempPathFactory,
    tampers: list[tuple[Callable[[list[bytes], int, int], list[bytes]], int, int]],
    anew: bool,
) -> None:
    """Where lines still parse, the chain may also be made anew. What changed nothing, or only added lines after all
    that was signed, is no tampering."""
    data, head = written
    original = b"".join(lines := _lines(data))
    for tamper, first, second in tampers:
        if len(lines) > max(first, second):
            lines = tamper(list(lines), first, second)
    try:
        lines = _chained_anew(lines) if anew else lines
    except TamperedDataError:
        return
    raw = b"".join(lines)
    folder = tmp_path_factory.mktemp("tampered")
    for name in ("head", "keys"):
        shutil.copy(data / "audit" / name, folder / name)
    (folder / "log").write_bytes(raw)
    assert bool(verify(folder, [head]).problem) != raw.startswith(original)
    shutil.rmtree(folder)


# ---- threads, crashes, other hands -----------------------------------------------------------------------
@pytest.mark.parametrize("sealed", [False, True])
def test_threads_append_at_once_and_nothing_is_lost(tmp_path: Path, sealed: bool) -> None:
    acknowledged: list[int] = []
    with open_audit_log(tmp_path, kek() if sealed else None) as log:
        heads = [log.head()]
        run_threads(log, 200, acknowledged)
        heads.append(log.head())
        assert not verify(tmp_path / "audit", heads).problem, "it is checked while a server has it open"
    assert sorted(_numbers(tmp_path, sealed)) == sorted(acknowledged) == list(range(THREADS * 200))
    assert verify(tmp_path / "audit", heads).proven == THREADS * 200
    assert any(Line.parse(raw).batch < Line.parse(raw).sequence for raw in _lines(tmp_path)), "no sync served two"


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    acknowledged: list[int] = []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.audit_fixture", "kill", str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        acknowledged = [int(process.stdout.readline()) for _ in range(50)]
        process.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in process.stdout.read().split()]
        process.wait()
        found = _numbers(tmp_path)[-len(acknowledged) - 1 :]
        assert found[: len(acknowledged)] == acknowledged or found[1:] == acknowledged
        assert not verify(tmp_path / "audit").problem


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with open_audit_log(tmp_path), pytest.raises(Unavailable, match="another process has it open"):
        open_audit_log(tmp_path)
    log = open_audit_log(tmp_path)
    log.close()
    log.close()
    with pytest.raises(Unavailable, match="closed"):
        log.append(entry(1))


# ---- opened again ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("left", [b'{"hash":"00', b"\0" * 7000, b'x\n{"y":1}\n'])
def test_what_a_crash_left_is_cut_off_and_the_log_says_so(copy: tuple[Path, Head], left: bytes) -> None:
    data, head = copy
    sealed = b'"sealed"' in (data / "audit/log").read_bytes()
    with (data / "audit/log").open("ab") as file:
        file.write(left)
    found = verify(data / "audit", [head])
    assert (found.problem, found.proven) == ("", head.sequence)
    assert f"line {COUNT + 1}" in found.note
    _appended(data, 1, first=50, sealed=sealed)
    assert _numbers(data, sealed) == [*range(COUNT), 50]
    key = read_sealing_key(data / "audit", kek()) if sealed else None
    assert [of["bytes"] for of in entries(data / "audit", key) if of["kind"] == "cut"] == [len(left)]
    assert not verify(data / "audit", [head]).problem


def test_damage_that_a_head_covers_is_never_cut_off(copy: tuple[Path, Head]) -> None:
    data, _ = copy
    sealed = b'"sealed"' in (data / "audit/log").read_bytes()
    whole = (data / "audit/log").read_bytes()
    lines = _lines(data)
    lines[5] = lines[6]
    anew = b"".join(_chained_anew(lines))
    for altered in (whole[:-1], whole[:-700], b"", whole[:-30] + b"x" + whole[-29:], anew):
        (data / "audit/log").write_bytes(altered)
        with pytest.raises(DamagedDataError, match="audit log: line 12 is not where it was signed"):
            open_audit_log(data, kek() if sealed else None)
        assert (data / "audit/log").read_bytes() == altered
    (data / "audit/log").write_bytes(whole)
    (data / "audit/head").unlink()
    with pytest.raises(DamagedDataError, match="its head is missing"):
        open_audit_log(data, kek() if sealed else None)


def test_a_line_that_was_synced_is_never_cut_off_though_no_head_covers_it(tmp_path: Path) -> None:
    _appended(tmp_path, 1)
    head = (tmp_path / "audit/head").read_bytes()
    _appended(tmp_path, 5, first=1)
    (tmp_path / "audit/head").write_bytes(head)
    lines = _lines(tmp_path)
    _put(tmp_path, [*lines[:4], lines[4].replace(b"acme", b"evil"), *lines[5:]])
    with pytest.raises(DamagedDataError, match="line 4: its bytes are not those of its hash"):
        open_audit_log(tmp_path)
    assert verify(tmp_path / "audit").sequence == 4
    _put(tmp_path, [*lines[:6], lines[6].replace(b"acme", b"evil")])
    assert not verify(tmp_path / "audit").problem, "the last line may be what a crash left"


# ---- keys ------------------------------------------------------------------------------------------------
def test_a_sealed_log_opens_with_its_kek_alone_and_moves_to_another(tmp_path: Path) -> None:
    head = _appended(tmp_path, 2, sealed=True)
    with pytest.raises(InvalidInput, match="sealed"):
        open_audit_log(tmp_path)
    with pytest.raises(WrongKeyError):
        open_audit_log(tmp_path, kek(2))
    with pytest.raises(WrongKeyError):
        open_audit_log(tmp_path, kek(2), kek(3))
    with pytest.raises(InvalidInput, match="sealed"):
        list(entries(tmp_path / "audit", None))
    open_audit_log(tmp_path, kek(2), kek(1)).close()
    with pytest.raises(WrongKeyError):
        open_audit_log(tmp_path, kek(1))
    open_audit_log(tmp_path, kek(2)).close()
    found = entries(tmp_path / "audit", read_sealing_key(tmp_path / "audit", kek(2)))
    assert [of["sequence"] for of in found] == [0, 1, 2]
    assert verify(tmp_path / "audit", [head]).proven == head.sequence


def test_a_log_is_sealed_from_the_first_kek_on(tmp_path: Path) -> None:
    head = _appended(tmp_path, 2)
    _appended(tmp_path, 2, first=2, sealed=True)
    assert _numbers(tmp_path, sealed=True) == [0, 1, 2, 3]
    assert [json.loads(line).keys() & {"entry", "sealed"} for line in _lines(tmp_path)[1:]] == [{"entry"}] * 2 + [
        {"sealed"}
    ] * 2
    assert verify(tmp_path / "audit", [head]).proven == head.sequence
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "audit").iterdir())


def test_a_sealed_line_is_bound_to_its_place(tmp_path: Path) -> None:
    _appended(tmp_path, 4, sealed=True)
    lines = _lines(tmp_path)
    _put(tmp_path, _chained_anew([*lines[:2], lines[3], lines[2], *lines[4:]]))
    with pytest.raises(TamperedDataError, match="sealed audit entry"):
        _numbers(tmp_path, sealed=True)


def test_keys_that_are_gone_or_anothers_begin_no_new_log(tmp_path: Path) -> None:
    _appended(tmp_path / "one")
    _appended(tmp_path / "two")
    keys = tmp_path / "one/audit/keys"
    shutil.copy(tmp_path / "two/audit/keys", keys)
    with pytest.raises(TamperedDataError, match="another key"):
        open_audit_log(tmp_path / "one")
    keys.write_bytes(b"\0short")
    with pytest.raises(TamperedDataError, match="damaged"):
        open_audit_log(tmp_path / "one")
    keys.unlink()
    with pytest.raises(TamperedDataError, match="keys are missing"):
        open_audit_log(tmp_path / "one")


# ---- commands --------------------------------------------------------------------------------------------
def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new_kek_file(tmp_path / "kek")
    data, spec = tmp_path / "data", f"file:{tmp_path / 'kek'}"
    with open_audit_log(data, open_kek(spec)) as log:
        log.append(entry(1))
        log.append(entry(3, None))
    assert main(["audit", "head", str(data)]) == 0
    (tmp_path / "head.json").write_text(20 * capsys.readouterr().out)  # as if the command was run daily, with >>
    assert main(["audit", "verify", str(data), "--head", str(tmp_path / "head.json"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["unchanged"], found["server"]["proven"], found["server"]["lines"]) == (True, 2, 3)
    assert main(["audit", "show", str(data), "--kek", spec]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3
    assert "allow  acme/ada (token)  Search  Collection/acme/notes  101 bytes  by searcher  00000001" in shown[1]
    assert "deny   ?/? (unknown)" in shown[2]
    assert main(["audit", "show", str(data), "--kek", spec, "--json"]) == 0
    assert [json.loads(line)["sequence"] for line in capsys.readouterr().out.splitlines()] == [0, 1, 2]
    assert main(["audit", "show", str(data)]) == 2
    assert "--kek" in capsys.readouterr().err
    _put(data, _lines(data)[:-1])
    assert main(["audit", "verify", str(data)]) == 6
    assert "line 2 is missing" in capsys.readouterr().out
    with pytest.raises(NotFound):
        verify(tmp_path)
    assert main(["audit", "head", str(tmp_path)]) == 3
