"""Signed manifests and pins: who may commit, and what a server may show to whom."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from he_client import Client, CollectionKey
from he_client.manifest import EPOCH, PURPOSE, Manifest, open_manifest, seal_manifest
from he_client.pins import Pin, Pins
from he_client.signing import KeyHolder, Writer, sign_manifest, sign_writers
from he_engine.errors import FormatVersionError, InvalidInput, RollbackError, TamperedDataError
from he_engine.keys import length_prefixed
from he_engine.params import Parameters
from he_engine.sealing import seal
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb

PARAMETERS = Parameters.choose("compact", 16)
KEY = CollectionKey.generate()


class Person:
    """A writer with a key of their own."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        self.public_key = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)


ADA, BOB, EVE = Person(), Person(), Person()


def first(**fields: object) -> pb.Manifest:
    return pb.Manifest(
        format_version=wire.FORMAT_VERSION,
        collection_id=bytes(16),
        version=1,
        parameters=wire.parameters_to_wire(PARAMETERS),
        parameter_digest=PARAMETERS.digest,
        metric="cosine",
        norm_bound=1.0,
        **fields,  # type: ignore[arg-type]
    )


def shown(sealed: bytes, version: int = 1) -> pb.ReadManifestResponse:
    return pb.ReadManifestResponse(collection_id=bytes(16), version=version, sealed_manifest=sealed)


def opened(plain: bytes) -> Manifest:
    """What a client makes of such a plaintext, under the right key and associated data."""
    aad = length_prefixed(PURPOSE, "notes", bytes(16), EPOCH, 1)
    return open_manifest(KEY, "notes", shown(seal(KEY, PURPOSE, aad, plain)))


def owned(writers: dict[bytes, str], owner: Writer = ADA) -> pb.Manifest:
    message = first()
    sign_writers(owner, message, writers)
    return message


@pytest.mark.parametrize("writer", [None, ADA, BOB], ids=["key holder", "owner", "writer"])
def test_those_who_may_sign(writer: Writer | None) -> None:
    message = owned({BOB.public_key: "bob"}) if writer else first()
    sealed, manifest = seal_manifest(KEY, "notes", message, writer)
    found = open_manifest(KEY, "notes", shown(sealed))
    assert found.message == manifest.message
    assert found.owner == (ADA.public_key if writer else b"")


@pytest.mark.parametrize("writer", [None, EVE], ids=["key holder", "stranger"])
def test_nobody_else_may(writer: Writer | None) -> None:
    with pytest.raises(InvalidInput, match="not among the collection's writers"):
        seal_manifest(KEY, "notes", owned({BOB.public_key: "bob"}), writer)


def _flipped(plain: bytes, part: Callable[[pb.SignedManifest], bytes]) -> bytes:
    place = plain.index(part(pb.SignedManifest.FromString(plain)))
    return plain[:place] + bytes([plain[place] ^ 1]) + plain[place + 1 :]


def _by_eve(message: pb.Manifest) -> bytes:
    """As whoever has the collection's key, but is no writer, could make it."""
    message.writer = EVE.public_key
    raw = message.SerializeToString()
    data = length_prefixed("hesearch manifest", "notes", bytes(16), 1, PARAMETERS.digest, raw)
    return pb.SignedManifest(format_version=2, manifest=raw, signature=EVE.sign(data)).SerializeToString()


def _grown() -> pb.Manifest:
    """With a writer whom the owner did not sign."""
    message = owned({BOB.public_key: "bob"})
    message.writers.writers.add(public_key=EVE.public_key, name="eve")
    return message


def _renamed() -> bytes:
    message = owned({BOB.public_key: "bob"})
    message.writers.writers[0].name = "alice"
    return sign_manifest(BOB, "notes", message)


def _unsigned() -> bytes:
    message = owned({})
    message.writer = ADA.public_key
    return message.SerializeToString()


@pytest.mark.parametrize(
    "plain",
    [
        lambda: _by_eve(first()),
        lambda: _by_eve(owned({BOB.public_key: "bob"})),
        lambda: _by_eve(_grown()),
        _renamed,
        _unsigned,
        lambda: sign_manifest(ADA, "other", owned({})),
        lambda: _flipped(sign_manifest(ADA, "notes", owned({})), lambda signed: signed.signature),
        lambda: pb.SignedManifest(format_version=2, manifest=first().SerializeToString()).SerializeToString(),
    ],
    ids=["no list", "not on it", "put herself on it", "renamed", "unsigned", "other name", "flipped", "no signature"],
)
def test_what_is_not_signed_by_who_may_is_refused(plain: Callable[[], bytes]) -> None:
    opened(sign_manifest(KeyHolder(KEY, bytes(16)), "notes", first()))  # the rest is right
    with pytest.raises(TamperedDataError):
        opened(plain())


def test_manifests_of_format_1_nobody_signed() -> None:
    assert opened(first().SerializeToString()).version == 1


def test_only_the_owner_changes_the_writers() -> None:
    message = owned({BOB.public_key: "bob"})
    with pytest.raises(InvalidInput, match="owner"):
        sign_writers(BOB, message, {EVE.public_key: "eve"})
    sign_writers(ADA, message, {})
    assert message.writers.serial == 2
    with pytest.raises(InvalidInput):
        sign_manifest(BOB, "notes", message)
    with pytest.raises(InvalidInput, match="32 bytes"):
        sign_writers(ADA, message, {b"short": "x"})


def _manifest(message: pb.Manifest, version: int, sha256: bytes, *ancestors: bytes) -> Manifest:
    copy = pb.Manifest()
    copy.CopyFrom(message)
    copy.version = version
    copy.ancestors_sha256.extend(ancestors)
    return Manifest(copy, sha256)


def test_a_pin_holds_owner_and_writers() -> None:
    message = owned({BOB.public_key: "bob"})
    sign_writers(ADA, message, {})
    pin = Pin.of(_manifest(message, 1, b"1" * 32))
    pin.require_successor(_manifest(message, 2, b"2" * 32, b"1" * 32))
    for other in (owned({}), owned({}, EVE), first()):
        with pytest.raises(TamperedDataError, match="another owner, or an older list"):
            pin.require_successor(_manifest(other, 2, b"2" * 32, b"1" * 32))
    Pin.of(_manifest(first(), 1, b"1" * 32)).require_successor(_manifest(message, 2, b"2" * 32, b"1" * 32))


def test_pins_last_in_a_folder_and_never_go_back(tmp_path: Path) -> None:
    one, two = _manifest(first(), 1, b"1" * 32), _manifest(first(), 2, b"2" * 32, b"1" * 32)
    Pins("server", tmp_path).pin("notes", two)
    Pins("server", tmp_path).pin("notes", one)
    for name, server in (("other", "server"), ("notes", "other")):
        Pins(server, tmp_path).require(name, one)
    pins = Pins("server", tmp_path)
    pins.require("notes", two)
    with pytest.raises(RollbackError):
        pins.require("notes", one)
    (path,) = tmp_path.glob("*.json")
    assert path.stat().st_mode & 0o777 == 0o600
    for raw in (b"", b"{}", b"[" * 4000, path.read_bytes().replace(b'"version": 2', b'"version": "2"')):
        path.write_bytes(raw)
        with pytest.raises(FormatVersionError, match="remove it"):
            pins.require("notes", two)
    pins.forget("notes")
    pins.require("notes", one)


# ---- whole clients -------------------------------------------------------------------------------------------
def filled(client: Client, rows: int) -> None:
    collection = client.open_collection("notes", key=KEY)
    first_id = collection.count()
    collection.insert(range(first_id, first_id + rows), np.eye(rows, 16), progress=False)


def test_a_server_that_goes_back_is_caught_after_a_restart(tmp_path: Path) -> None:
    data, older, state = tmp_path / "data", tmp_path / "older", tmp_path / "state"
    with Client(data, state=state) as client:
        client.create_collection("notes", dim=16, key=KEY, profile="compact")
        filled(client, 2)
    shutil.copytree(data, older)
    with Client(data, state=state) as client:
        filled(client, 2)
    shutil.rmtree(data)
    older.rename(data)
    with Client(data, state=state) as client, pytest.raises(RollbackError, match="version 2 does not extend version 3"):
        client.open_collection("notes", key=KEY)
    with Client(data) as client:  # has seen nothing
        assert client.open_collection("notes", key=KEY).count() == 2
    with Client(data, state=state) as client:
        client.trust("notes")
        assert client.open_collection("notes", key=KEY).count() == 2


def test_another_collection_of_the_name_is_noticed(tmp_path: Path) -> None:
    data, state = tmp_path / "data", tmp_path / "state"
    with Client(data, state=state) as client:
        for _ in range(2):  # who drops a collection knows
            client.create_collection("notes", dim=16, key=KEY, profile="compact")
            client.drop_collection("notes")
        client.create_collection("notes", dim=16, key=KEY, profile="compact")
    with Client(data) as client:
        client.drop_collection("notes")
        client.create_collection("notes", dim=16, key=KEY, profile="compact")
    with Client(data, state=state) as client, pytest.raises(RollbackError, match="another collection of this name"):
        client.open_collection("notes", key=KEY)


def test_a_writer_commits_and_others_only_read(tmp_path: Path) -> None:
    with Client(tmp_path, writer=ADA) as client:
        client.create_collection("notes", dim=16, key=KEY, profile="compact")
        filled(client, 3)
        client.open_collection("notes", key=KEY).delete([1])
    for writer in (None, EVE):
        with Client(tmp_path, writer=writer) as client:
            collection = client.open_collection("notes", key=KEY)
            assert collection.search(np.eye(1, 16)[0], k=1)[0].id == 0
            with pytest.raises(InvalidInput, match="not among the collection's writers"):
                collection.insert([7], np.eye(1, 16), progress=False)
            with pytest.raises(InvalidInput, match="not among the collection's writers"):
                collection.delete([0])
            assert collection.count() == 2
