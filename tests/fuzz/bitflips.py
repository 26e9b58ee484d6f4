"""One bit is flipped in a file of every kind that is written; whoever reads the file must notice, or lose nothing.

    python -m tests.fuzz.bitflips --runs 10000 --seed 1 --json build/bitflips.json

A flip is *detected* where the reader raises a HesearchError (in a cache: finds nothing), or fsck reports it. It has *no
effect* where all that can be read is as before: it hit padding, or bytes that SQLite does not use. Anything else is a
failure: other content, or another exception. Of a backup, what can be read is the folder that is restored.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import json
import logging
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from cryptography.exceptions import InvalidTag

from he_client import keys
from he_client.cache import PartCache
from he_client.keys import SealedKey
from he_client.upkeep.archive_format import read_archive
from he_client.upkeep.reseal_journal import open_journal
from he_engine.errors import HesearchError, TamperedDataError, WrongKeyError
from he_server.operate.backup import backup
from he_server.operate.backup_list import CATALOGUE, LIST
from he_server.operate.restore import restore
from he_server.storage.catalogue import Catalogue
from he_server.storage.catalogue_rows import CollectionRecord
from he_server.storage.kek import KeyProvider, open_kek
from he_server.storage.segment_file import Description, open_source, read_description, read_part
from he_server.storage.store import Store
from tests.fuzz.formats import COLLECTION, KEY, NEW_KEY, PARAMETERS, journal_bytes
from tests.fuzz.messages import ID, NAME, Server
from tests.fuzz.run import write
from tests.fuzz.stored import archive_bytes
from tests.fuzz.target import scratch

COLLECTIONS, SEGMENTED, MANIFEST_DIGESTS = 40, 8, 50  #: of the catalogue: how many, those with segments, bytes / 32


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file. read: what its real reader finds in such bytes; raises HesearchError where they are wrong."""

    name: str
    data: bytes
    read: Callable[[bytes], object]


class Files:
    """One of each, in a folder in memory. A context manager."""

    def __init__(self) -> None:
        self.folder = scratch()
        self._kek_file = self.folder / "kek"
        self._kek_file.write_bytes(bytes(range(32)))
        self._kek_file.chmod(0o600)
        self.kek = open_kek(f"file:{self._kek_file}")
        self.kinds: list[Kind] = []
        for sealed in (False, True):
            root = self.folder / ("sealed" if sealed else "data")
            Server(root, f"file:{self._kek_file}" if sealed else "").service.close()
            prefix, kek = ("sealed ", self.kek) if sealed else ("", None)
            _fill(root, kek)
            self._add_folder(root, prefix, kek)
            self._add_backup(root, prefix, kek)
        self.kinds += [self._key_file(), self._archive(), self._journal(), self._cached_part()]

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder)

    def _add_folder(self, root: Path, prefix: str, kek: KeyProvider | None) -> None:
        """Its files read alone, and as a server and fsck read them in their place."""
        (segment,) = (root / "segments" / ID.hex()).iterdir()
        catalogue = Catalogue(root / "catalogue.sqlite", kek)
        key = catalogue.state(ID).key(1 if kek else 0)
        catalogue.close()

        def read_segment(data: bytes) -> object:
            (path := self.folder / "segment").write_bytes(data)
            source = open_source(path, key)
            description = read_description(source)
            parts = [b"".join(read_part(source, part, 0, part.length_bytes)) for part in description.parts]
            return description, parts

        def read_catalogue(data: bytes) -> object:
            for path in self.folder.glob("catalogue*"):
                path.unlink()
            (path := self.folder / "catalogue.sqlite").write_bytes(data)
            return _catalogue(path, kek)

        def in_place(path: Path) -> Callable[[bytes], object]:
            def read(data: bytes) -> object:
                shutil.rmtree(copy := self.folder / "copy", ignore_errors=True)
                shutil.copytree(root, copy)
                (copy / path.relative_to(root)).write_bytes(data)
                _fsck(copy, kek)
                return _store(copy, kek)

            return read

        for name, path, reader in (
            ("segment file", segment, read_segment),
            ("catalogue", root / "catalogue.sqlite", read_catalogue),
        ):
            data = path.read_bytes()
            self.kinds.append(Kind(name=prefix + name, data=data, read=reader))
            self.kinds.append(Kind(name=f"{prefix}{name} in its folder", data=data, read=in_place(path)))

    def _add_backup(self, root: Path, prefix: str, kek: KeyProvider | None) -> None:
        """Each of its files; what `restore` takes, fsck must find sound, and the same as before."""
        target = self.folder / f"{prefix}backup"
        backup(root, target)
        (segment,) = (target / "segments" / ID.hex()).iterdir()

        def in_place(path: Path) -> Callable[[bytes], object]:
            sound = path.read_bytes()

            def read(data: bytes) -> object:
                shutil.rmtree(restored := self.folder / "restored", ignore_errors=True)
                path.write_bytes(data)
                try:
                    restore(target, restored)
                finally:
                    path.write_bytes(sound)
                _fsck(restored, kek)
                return {str(p.relative_to(restored)): p.read_bytes() for p in restored.rglob("*") if p.is_file()}

            return read

        for path in (target / LIST, target / CATALOGUE, segment):
            name = f"{prefix}backup, {'segment file' if path == segment else path.name}"
            self.kinds.append(Kind(name=name, data=path.read_bytes(), read=in_place(path)))

    def _key_file(self) -> Kind:
        """With an Argon2id that takes no time; the rest as `CollectionKey.save` writes it."""
        kdf = {"name": "argon2id", "iterations": 1, "memory_kib": 8, "lanes": 1}
        header = {"format": keys.FORMAT, "version": 1, "kdf": kdf, "salt": "5a" * 16, "nonce": "a5" * 12}
        cipher = keys._cipher(header, "passphrase")
        sealed = cipher.encrypt(bytes.fromhex("a5" * 12), bytes(range(32)), keys.canonical(header))
        data = (json.dumps({**header, "sealed": sealed.hex()}, indent=1) + "\n").encode()

        def read(data: bytes) -> object:
            try:
                return SealedKey.parse(data).open("passphrase")
            except InvalidTag:
                raise WrongKeyError("as CollectionKey.load") from None

        return Kind(name="key file", data=data, read=read)

    def _archive(self) -> Kind:
        def read(data: bytes) -> object:
            reader = read_archive(io.BytesIO(data))
            segments = [(segment.header, b"".join(segment.chunks())) for segment in reader.segments()]
            return reader.collection, segments

        return Kind(name="archive", data=archive_bytes(2), read=read)

    def _journal(self) -> Kind:
        path = self.folder / "journal"

        def read(data: bytes) -> object:
            path.write_bytes(data)
            with open_journal(path, COLLECTION, KEY, NEW_KEY, bytes(32)) as journal:
                if path.stat().st_size != len(data):
                    raise TamperedDataError("its last line counts as torn: that segment is made again")
                return journal.engine_state, [(r.source_id, r.dropped, r.entry) for r in journal.done.values()]

        return Kind(name="reseal journal", data=journal_bytes(path), read=read)

    def _cached_part(self) -> Kind:
        folder = self.folder / "cache"
        cache = PartCache(folder)
        part = bytes(range(256)) * 16
        digest = hashlib.sha256(part).digest()
        cache.put(digest, part)
        (path,) = folder.iterdir()

        def read(data: bytes) -> object:
            path.write_bytes(data)
            if (found := PartCache(folder).get(digest)) is None:
                raise TamperedDataError("not in the cache")
            return found

        return Kind(name="client cache", data=path.read_bytes(), read=read)


def _fill(root: Path, kek: KeyProvider | None) -> None:
    """Collections and segments enough that most of the catalogue's pages are full."""
    store = Store(root, kek=kek)
    try:
        for number in range(COLLECTIONS):
            collection_id = number.to_bytes(16, "big")
            record = CollectionRecord(f"collection {number}", collection_id, b"parameters", PARAMETERS.digest, 1)
            store.create(record, hashlib.sha256(collection_id).digest() * MANIFEST_DIGESTS, COLLECTIONS + 1)
            live = []
            for part in (b"", b"x") if number < SEGMENTED else ():
                table = [(1, len(part), hashlib.sha256(part).digest())]
                with store.upload(Description.of(collection_id, PARAMETERS.digest, 1, table)) as upload:
                    upload.write(part)
                    upload.finish()
                    upload.publish()
                live.append(upload.segment.description.segment_id)
            store.commit(record, 1, hashlib.sha256(record.name.encode()).digest() * MANIFEST_DIGESTS, live)
    finally:
        store.close()


def _catalogue(path: Path, kek: KeyProvider | None) -> object:
    catalogue = Catalogue(path, kek)
    try:
        states = [(state.record.collection_id, state.to_bytes()) for state in catalogue.states()]
        manifests = [catalogue.manifest(record.collection_id) for record in catalogue.collections()]
        return states, manifests, catalogue.segments()
    finally:
        catalogue.close()


def _store(root: Path, kek: KeyProvider | None) -> object:
    """All that a server of this folder can give its clients."""
    store = Store(root, kek=kek)
    try:
        record, sealed, live = store.manifest(store.find(NAME))
        with store.snapshot(record, record.version) as snapshot:
            segments = [
                (segment.description, [b"".join(read_part(source, p, 0, p.length_bytes)) for p in parts])
                for segment in snapshot.segments
                for source, parts in [(segment.source, segment.description.parts)]
            ]
        return store.collections(), record, sealed, live, segments
    finally:
        store.close()


def _fsck(root: Path, kek: KeyProvider | None) -> None:
    """Raises TamperedDataError where fsck finds something."""
    try:
        fsck: Any = importlib.import_module("he_server.operate.fsck")
    except ModuleNotFoundError:
        return
    if not (report := fsck.check(root, kek)).clean:
        raise TamperedDataError(f"fsck: {report.problems[:1]}")


def flip(kind: Kind, runs: int, seed: int) -> dict[str, Any]:
    """Flips one bit in each of `runs` copies; a line for a report."""
    began, rng = time.perf_counter(), Random(f"{kind.name} {seed}")
    sound = kind.read(kind.data)
    counts: Counter[str] = Counter()
    failed: list[dict[str, Any]] = []
    for _ in range(runs):
        bit = rng.randrange(8 * len(kind.data))
        data = bytearray(kind.data)
        data[bit // 8] ^= 1 << bit % 8
        try:
            what = "no_effect" if kind.read(bytes(data)) == sound else "other content"
        except HesearchError:
            what = "detected"
        except Exception as error:
            what = type(error).__name__
        counts[what] += 1
        if what not in ("detected", "no_effect"):
            failed.append({"bit": bit, "what": what})
    return {
        "what": f"bit flips, {kind.name}",
        "runs": runs,
        "failures": len(failed),
        "failed": failed[:20],
        "detected": counts["detected"],
        "no_effect": counts["no_effect"],
        "file_bytes": len(kind.data),
        "seconds": round(time.perf_counter() - began, 1),
        "seed": seed,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000, help="of all kinds together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the report goes; default: standard output")
    chosen = parser.parse_args()
    logging.disable()  # servers log what they find damaged
    with Files() as files:
        each = -(-chosen.runs // len(files.kinds))
        lines = [flip(kind, each, chosen.seed) for kind in files.kinds]
    for line in lines:
        line["command"] = f"python -m tests.fuzz.bitflips --runs {chosen.runs} --seed {chosen.seed}"
    write(lines, chosen.json)
    return int(any(line["failures"] for line in lines))


if __name__ == "__main__":
    sys.exit(main())
