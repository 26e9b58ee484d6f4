"""Shares of a key: any k restore it; fewer, mistyped, mixed and made-up ones are typed errors, never another key."""

from __future__ import annotations

import itertools
import stat
from pathlib import Path

import pytest
import shamir_mnemonic

from he_client import AlreadyExists, CollectionKey, InvalidInput, NotFound, TamperedDataError
from he_client.cli import main
from he_client.key_backup import MixedSharesError, ShareError, TooFewSharesError, backup_key, restore_key


@pytest.fixture(scope="module")
def key() -> CollectionKey:
    return CollectionKey.generate()


@pytest.fixture(scope="module")
def shares(key: CollectionKey, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return backup_key(key, 5, 3, tmp_path_factory.mktemp("shares"))


def test_any_three_of_five_restore_it(key: CollectionKey, shares: list[Path]) -> None:
    for some in itertools.permutations(shares, 3):
        assert restore_key(some).reveal() == key.reveal()
    assert restore_key(shares).reveal() == key.reveal()
    assert restore_key([*shares[:3], shares[0]]).reveal() == key.reveal()


def test_any_two_of_five_do_not(shares: list[Path]) -> None:
    for some in [*itertools.combinations(shares, 2), shares[:1], [], [shares[0]] * 3]:
        with pytest.raises(TooFewSharesError):
            restore_key(some)


def test_shares_are_private_printable_text(key: CollectionKey, shares: list[Path]) -> None:
    assert [path.name for path in shares] == [f"share-{n}-of-5.txt" for n in range(1, 6)]
    for path in shares:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        text = path.read_text()
        assert text.isascii()
        assert max(map(len, text.splitlines())) <= 80
        assert len(text.split("\n", 1)[1].split()) == 33
        assert key.reveal().hex() not in text


def test_typed_in_again(key: CollectionKey, shares: list[Path], tmp_path: Path) -> None:
    header, words = shares[0].read_text().split("\n", 1)
    typed = tmp_path / "typed"
    typed.write_text(header + "\n" + "\r\n  ".join(words.upper().split()))
    assert restore_key([typed, *shares[3:]]).reveal() == key.reveal()


def test_every_wrong_word_is_noticed(shares: list[Path], tmp_path: Path) -> None:
    header, words = shares[0].read_text().split("\n", 1)
    typed = tmp_path / "typed"
    for position in range(33):
        for wrong in ("academic", "zero", "xyzzy", ""):
            some = words.split()
            if some[position] == wrong:
                continue
            some[position] = wrong
            typed.write_text(header + "\n" + " ".join(some))
            with pytest.raises(ShareError):
                restore_key([typed, *shares[3:]])


def test_other_files_are_no_shares(shares: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    for raw in (b"", b"\xff", b"hesearch key", shares[0].read_bytes()[1:], shares[0].read_bytes() + b" x" * 70_000):
        other.write_bytes(raw)
        with pytest.raises(ShareError):
            restore_key([other, *shares[1:3]])
    with pytest.raises(NotFound):
        restore_key([tmp_path / "none", *shares[1:3]])


def test_shares_of_several_keys_and_backups(key: CollectionKey, shares: list[Path], tmp_path: Path) -> None:
    again = backup_key(key, 5, 3, tmp_path / "again")
    other = backup_key(CollectionKey.generate(), 5, 3, tmp_path / "other")
    for some in ([*shares[:2], again[2]], [*shares[:2], other[2]], [*shares, other[0]]):
        with pytest.raises(MixedSharesError):
            restore_key(some)


def _renamed(path: Path, to: str, folder: Path) -> Path:
    """The same share under another key's id."""
    header, words = path.read_text().split("\n", 1)
    folder.mkdir(exist_ok=True)
    (folder / path.name).write_text(header.replace(header.split()[2], to + ",") + "\n" + words)
    return folder / path.name


def test_a_share_that_was_made_up(shares: list[Path], tmp_path: Path) -> None:
    """Its checksum is right, its value is not: the digest within the secret, or the key's id, tells."""
    header, words = shares[0].read_text().split("\n", 1)
    share = shamir_mnemonic.Share.from_mnemonic(" ".join(words.split()))
    fields = {name: getattr(share, name) for name in share.__dataclass_fields__}
    fields["value"] = bytes(32)
    forged = tmp_path / "forged"
    forged.write_text(header + "\n" + shamir_mnemonic.Share(**fields).mnemonic())
    with pytest.raises(TamperedDataError):
        restore_key([forged, *shares[1:3]])


def test_a_share_that_asks_for_minutes(shares: list[Path], tmp_path: Path) -> None:
    """Ours are not stretched: the key has no passphrase. 2^15 times the usual work is what SLIP-39 allows."""
    asking = []
    for path in shares[:3]:
        header, words = path.read_text().split("\n", 1)
        share = shamir_mnemonic.Share.from_mnemonic(" ".join(words.split()))
        fields = {name: getattr(share, name) for name in share.__dataclass_fields__}
        asking.append(tmp_path / path.name)
        fields["iteration_exponent"] = 15
        asking[-1].write_text(header + "\n" + shamir_mnemonic.Share(**fields).mnemonic())
    with pytest.raises(ShareError):
        restore_key(asking)


def test_shares_that_name_another_key(shares: list[Path], tmp_path: Path) -> None:
    with pytest.raises(TamperedDataError, match="another key than they name"):
        restore_key([_renamed(path, "00" * 8, tmp_path / "renamed") for path in shares[:3]])


@pytest.mark.parametrize(("number", "needed"), [(5, 1), (1, 1), (2, 3), (17, 3), (0, 0), (3, -1)])
def test_numbers_that_make_no_sense(key: CollectionKey, tmp_path: Path, number: int, needed: int) -> None:
    with pytest.raises(InvalidInput):
        backup_key(key, number, needed, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_two_backups_do_not_mix_in_a_folder(key: CollectionKey, shares: list[Path]) -> None:
    with pytest.raises(InvalidInput):
        backup_key(key, 2, 2, shares[0].parent)


def test_command_line(tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("horse\n")
    passphrase = ["--passphrase-file", str(tmp_path / "pass")]
    key, folder = str(tmp_path / "notes.key"), tmp_path / "shares"
    assert main(["keygen", key, *passphrase]) == 0
    assert main(["key", "backup", key, "--shares", "3", "--needed", "2", str(folder), *passphrase]) == 0
    some = sorted(map(str, folder.iterdir()))[1:]
    assert main(["key", "restore", key, *some, *passphrase]) == 4, "never overwritten"
    restored = tmp_path / "restored.key"
    assert main(["key", "restore", str(restored), some[0], *passphrase]) == 2
    assert main(["key", "restore", str(restored), *some, *passphrase]) == 0
    assert CollectionKey.load(restored, "horse").reveal() == CollectionKey.load(key, "horse").reveal()
    with pytest.raises(AlreadyExists):
        CollectionKey.generate().save(restored, "x")
