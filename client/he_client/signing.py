"""Who signed a manifest, and who may.

    signature = Ed25519(writer, "hesearch manifest" ‖ name ‖ collection id ‖ version ‖ parameter digest ‖ manifest)

A manifest names its segments, hints, row tables, fingerprints and payloads by digest, and its predecessors too: to sign
it is to sign them. Without identities all key holders are one writer, whose signing key derives from the collection's
key. With them a collection has an owner, whose public key never changes and who signs the list of writers: who holds
the key alone can read, but what they commit is refused.

Ed25519 is deterministic (RFC 8032): no nonce can repeat.
"""

from __future__ import annotations

from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from he_engine.errors import InvalidInput, TamperedDataError
from he_engine.keys import RootKey, Secret, length_prefixed
from he_proto.v1 import hesearch_pb2 as pb

PUBLIC_KEY_BYTES = 32
MAX_WRITERS = 256


class Writer(Protocol):
    """Who commits."""

    @property
    def public_key(self) -> bytes:
        """Ed25519, 32 bytes."""

    def sign(self, data: bytes) -> bytes:
        """64 bytes."""


class KeyHolder(Secret):
    """Every holder of a collection's key, as one writer."""

    __slots__ = ("_private",)

    def __init__(self, key: RootKey, collection_id: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(key.derive("manifest writer", collection_id))

    @property
    def public_key(self) -> bytes:
        return self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)


def sign_manifest(writer: Writer, name: str, message: pb.Manifest) -> bytes:
    """The plaintext that is sealed. `message.writer` becomes this one's. Raises InvalidInput if it may not sign."""
    message.writer = writer.public_key
    if message.HasField("writers") and message.writer not in _admitted(message.writers):
        raise InvalidInput("writer: this identity is not among the collection's writers; its owner can add it")
    raw = message.SerializeToString()
    signed = pb.SignedManifest(
        format_version=2, manifest=raw, signature=writer.sign(_manifest_data(name, message, raw))
    )
    return signed.SerializeToString()


def verify_manifest(key: RootKey, name: str, message: pb.Manifest, signed: pb.SignedManifest) -> None:
    """Raises TamperedDataError unless somebody signed it who may."""
    if message.HasField("writers"):
        admitted = _admitted(message.writers)
        _verify(message.writers.owner, message.writers.signature, _writers_data(message), "list of writers")
    else:
        admitted = [KeyHolder(key, message.collection_id).public_key]
    if message.writer not in admitted:
        raise TamperedDataError("manifest: signed by somebody who is not among the collection's writers")
    _verify(message.writer, signed.signature, _manifest_data(name, message, signed.manifest), "manifest")


def sign_writers(owner: Writer, message: pb.Manifest, writers: dict[bytes, str]) -> None:
    """Gives the manifest this list (public key → name), with the next serial. Raises InvalidInput."""
    if message.HasField("writers") and message.writers.owner != owner.public_key:
        raise InvalidInput("writers: only the collection's owner can change them")
    if len(writers) > MAX_WRITERS or any(len(public) != PUBLIC_KEY_BYTES for public in writers):
        raise InvalidInput(f"writers: expected at most {MAX_WRITERS} public keys of {PUBLIC_KEY_BYTES} bytes")
    following = pb.Writers(owner=owner.public_key, serial=message.writers.serial + 1)
    following.writers.extend(pb.Writer(public_key=public, name=named) for public, named in sorted(writers.items()))
    message.writers.CopyFrom(following)
    message.writers.signature = owner.sign(_writers_data(message))


def _admitted(writers: pb.Writers) -> list[bytes]:
    return [writers.owner, *(writer.public_key for writer in writers.writers)]


def _manifest_data(name: str, message: pb.Manifest, raw: bytes) -> bytes:
    return length_prefixed(
        "hesearch manifest", name, message.collection_id, message.version, message.parameter_digest, raw
    )


def _writers_data(message: pb.Manifest) -> bytes:
    listed = [field for writer in message.writers.writers for field in (writer.public_key, writer.name)]
    return length_prefixed(
        "hesearch writers", message.collection_id, message.writers.owner, message.writers.serial, *listed
    )


def _verify(public_key: bytes, signature: bytes, data: bytes, what: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        raise TamperedDataError(f"manifest: the signature of the {what} is not its writer's") from None
