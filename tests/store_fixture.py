"""One collection of a store, unsealed or sealed, and segments of any bytes for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from he_engine.keys import RootKey
from he_server.storage.catalogue_rows import CollectionRecord
from he_server.storage.kek import KeyProvider, SecretKek
from he_server.storage.segment_file import Description, Source, read_description, read_part
from he_server.storage.store import Store

COLLECTION = b"c" * 16
DIGEST = b"d" * 32
RECORD = CollectionRecord("notes", COLLECTION, b"parameters", DIGEST, 1)
KEK = SecretKek(RootKey(bytes(32)))


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def described(contents: Sequence[bytes], collection_id: bytes = COLLECTION) -> Description:
    """Of a segment of two blocks whose parts, kinds ascending, are `contents`."""
    table = ((kind + 1, len(data), sha256(data)) for kind, data in enumerate(contents))
    return Description.of(collection_id, DIGEST, 2, table)


def uploaded(store: Store, contents: Sequence[bytes], collection_id: bytes = COLLECTION) -> bytes:
    """Stores such a segment; its id."""
    with store.upload(described(contents, collection_id)) as upload:
        upload.write(b"".join(contents))
        upload.finish()
        upload.publish()
    return upload.segment.description.segment_id


def made(root: Path, kek: KeyProvider | None, contents_of: Iterable[Sequence[bytes]] = (), **where: str) -> list[bytes]:
    """A closed data folder with the collection at version 2 and these segments live in it; their ids."""
    store = Store(root, kek=kek, **where)
    store.create(RECORD, b"sealed", 10)
    live = [uploaded(store, contents) for contents in contents_of]
    store.commit(RECORD, 1, b"sealed 2", live)
    store.close()
    return live


def path_of(root: Path, segment_id: bytes, collection_id: bytes = COLLECTION) -> Path:
    """Its file, under whatever data key; where there is none, the name of an unsealed one."""
    folder = root / "segments" / collection_id.hex()
    return next(folder.glob(segment_id.hex() + "*"), folder / segment_id.hex())


def verified(source: Source) -> Description:
    """Every byte of it read. Raises TamperedDataError."""
    found = read_description(source)
    for part in found.parts:
        for _ in read_part(source, part, 0, part.length_bytes):
            pass
    return found


def verify(store: Store, segment_id: bytes) -> Description:
    """A stored segment, every byte of it read. Raises TamperedDataError."""
    with store.segment(RECORD, segment_id) as snapshot:
        return verified(snapshot.segments[0].source)
