"""A shared key: opened by its recipient alone, believed from its sender alone, and not when a byte differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from he_client import AlreadyExists, CollectionKey, FormatVersionError, InvalidInput, TamperedDataError
from he_client import key_sharing as sharing
from he_client.cli import main
from he_client.key_sharing import (
    Identity,
    PublicIdentity,
    WrongRecipientError,
    WrongSenderError,
    accept_key,
    share_key,
)
from he_engine.keys import length_prefixed

ANNA, BEN, EVE = (Identity.generate() for _ in range(3))


@pytest.fixture
def key() -> CollectionKey:
    return CollectionKey.generate()


@pytest.fixture
def path(key: CollectionKey, tmp_path: Path) -> Path:
    share_key(key, ANNA, BEN.public, tmp_path / "for-ben")
    return tmp_path / "for-ben"


def test_the_recipient_gets_the_key(path: Path, key: CollectionKey) -> None:
    assert accept_key(path, BEN, ANNA.public).reveal() == key.reveal()
    assert key.reveal().hex() not in path.read_text()
    with pytest.raises(AlreadyExists):
        share_key(key, ANNA, BEN.public, path)


def test_every_sharing_differs(path: Path, key: CollectionKey, tmp_path: Path) -> None:
    share_key(key, ANNA, BEN.public, tmp_path / "again")
    assert json.loads(path.read_text())["sealed"] != json.loads((tmp_path / "again").read_text())["sealed"]


def test_wrong_recipient_and_wrong_sender(path: Path) -> None:
    with pytest.raises(WrongRecipientError):
        accept_key(path, EVE, ANNA.public)
    with pytest.raises(WrongSenderError):
        accept_key(path, BEN, EVE.public)


def test_nobody_else_opens_it_who_takes_the_names_off(path: Path) -> None:
    """Past the check of names: the seal itself holds."""
    fields = json.loads(path.read_text())
    fields["to"] = str(EVE.public)
    path.write_text(json.dumps(fields))
    with pytest.raises(TamperedDataError):
        accept_key(path, EVE, ANNA.public)
    fields.update(signature=_signature(ANNA, fields))
    path.write_text(json.dumps(fields))
    with pytest.raises(TamperedDataError):
        accept_key(path, EVE, ANNA.public)


def _signature(sender: Identity, fields: dict[str, str]) -> str:
    named = fields["from"], fields["to"], fields["key_id"], bytes.fromhex(fields["sealed"])
    return sender.signing_key().sign(length_prefixed("hesearch shared key", 1, *named)).hex()


def test_a_sealed_key_cannot_be_passed_on_under_another_name(path: Path) -> None:
    """Eve replaces the sender and the signature by her own: what is sealed still names Anna."""
    fields = json.loads(path.read_text())
    assert _signature(ANNA, fields) == fields["signature"], "the test signs as the code does"
    fields["from"] = str(EVE.public)
    fields.update(signature=_signature(EVE, fields))
    path.write_text(json.dumps(fields))
    with pytest.raises(TamperedDataError):
        accept_key(path, BEN, EVE.public)


def test_a_sender_who_names_another_key(path: Path) -> None:
    fields = json.loads(path.read_text())
    fields["key_id"] = "00" * 8
    info = length_prefixed("hesearch shared key", 1, fields["from"], fields["to"], fields["key_id"])
    recipient = X25519PublicKey.from_public_bytes(BEN.public.agreement)
    fields["sealed"] = sharing._SUITE.encrypt(CollectionKey.generate().reveal(), recipient, info).hex()
    fields.update(signature=_signature(ANNA, fields))
    path.write_text(json.dumps(fields))
    with pytest.raises(TamperedDataError, match="names another key"):
        accept_key(path, BEN, ANNA.public)


@pytest.mark.parametrize("field", ["key_id", "sealed", "signature"])
def test_every_altered_byte_is_noticed(path: Path, field: str) -> None:
    fields = json.loads(path.read_text())
    for position in range(0, len(fields[field]), 2):
        digits = fields[field]
        flipped = f"{int(digits[position], 16) ^ 8:x}"
        path.write_text(json.dumps({**fields, field: digits[:position] + flipped + digits[position + 1 :]}))
        with pytest.raises(TamperedDataError):
            accept_key(path, BEN, ANNA.public)
    path.write_text(json.dumps({**fields, field: fields[field][:-2]}))
    with pytest.raises(TamperedDataError):
        accept_key(path, BEN, ANNA.public)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"version": 1}', "[" * 100_000])
def test_other_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(FormatVersionError):
        accept_key(tmp_path / "x", BEN, ANNA.public)


def test_public_identities_are_one_word_with_a_checksum() -> None:
    text = str(BEN.public)
    assert PublicIdentity.parse(text) == BEN.public
    for position in range(len(text)):
        for wrong in (
            text[:position],
            text[:position] + ("A" if text[position] != "A" else "B") + text[position + 1 :],
        ):
            with pytest.raises(InvalidInput):
                PublicIdentity.parse(wrong)
    for wrong in (text + "A", text + "=", " " + text, text + "\n", text.swapcase(), "é"):
        with pytest.raises(InvalidInput):
            PublicIdentity.parse(wrong)


def test_points_of_small_order_are_refused(key: CollectionKey, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        share_key(key, ANNA, PublicIdentity(bytes(32), BEN.public.signing), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_an_identity_is_no_collection_key(tmp_path: Path) -> None:
    BEN.save(tmp_path / "ben", "p")
    with pytest.raises(FormatVersionError):
        CollectionKey.load(tmp_path / "ben", "p")
    assert Identity.load(tmp_path / "ben", "p").public == BEN.public


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pass").write_text("horse\n")
    passphrase = ["--passphrase-file", str(tmp_path / "pass")]
    at = {name: str(tmp_path / name) for name in ("anna", "ben", "notes.key", "bens.key", "for-ben", "x")}
    public = {}
    for name in ("anna", "ben"):
        assert main(["key", "identity", at[name], "--new", *passphrase]) == 0
        capsys.readouterr()
        assert main(["key", "identity", at[name], "--json", *passphrase]) == 0
        public[name] = json.loads(capsys.readouterr().out)["public"]
    assert main(["keygen", at["notes.key"], *passphrase]) == 0
    share = ["key", "share", at["notes.key"], "--identity", at["anna"], "--to", public["ben"], at["for-ben"]]
    assert main([*share, *passphrase, "--identity-passphrase-file", str(tmp_path / "pass")]) == 0
    accept = ["key", "accept", at["for-ben"], "--identity", at["ben"], *passphrase]
    accept += ["--identity-passphrase-file", str(tmp_path / "pass")]
    assert main([*accept, "--from", public["ben"], at["x"]]) == 5
    assert main([*accept, "--from", public["anna"], at["bens.key"]]) == 0
    keys = [CollectionKey.load(at[name], "horse").key_id for name in ("notes.key", "bens.key")]
    assert keys[0] == keys[1]
    assert not Path(at["x"]).exists()
