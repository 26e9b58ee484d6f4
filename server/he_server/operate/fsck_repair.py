"""What `hesearch fsck --repair` does with what `check` found: see he_server.operate.fsck."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from he_engine.errors import HesearchError, NotFound, TamperedDataError
from he_engine.keys import length_prefixed
from he_server.operate import fsck_catalogue
from he_server.operate.fsck_rows import Findings, Rows
from he_server.storage import files
from he_server.storage.catalogue_rows import FileId, Key, SegmentRecord, State, segment_to_bytes
from he_server.storage.cells import close_cell
from he_server.storage.database import Database, sqlite_errors
from he_server.storage.files import NewFile, PlainFile
from he_server.storage.folder import place
from he_server.storage.kek import KeyProvider
from he_server.storage.sealed_file import CHUNK_BYTES, NewSealedFile
from he_server.storage.segment_file import Source, open_source, read_description, verify

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)  #: a file system that has none, or no more of this file


class Repair:
    """Of one folder, whose lock is held. Raises as fsck.check for `source`."""

    def __init__(self, root: Path, kek: KeyProvider | None, source: Path | None) -> None:
        self._root = root
        self._segments = root / "segments"
        self._source = None if source is None else Donor(source, kek)
        self._aside = root / "damaged" / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self._rebuilt = False
        self.done: list[str] = []  #: one text for each thing that was done

    def mend_files(self, found: Findings) -> None:
        """Those of segments, and those that are none."""
        rows = found.rows
        for path in found.unfinished:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            files.remove(path)
            self.done.append(f"removed {path.relative_to(self._root)}, which was on its way")
        for path in [] if rows.problems else found.strays:
            if self._rebuilt:
                self._put_aside(path)
            else:
                files.remove(path)
                self.done.append(f"removed {path.relative_to(self._root)}, which no row names")
        gone = []
        for record in found.damaged:
            if self._mend_row(rows, record):
                continue
            if self._restore(rows, record):
                self._mend_row(rows, record)
            elif record.file_id[:2] not in rows.live:
                self._put_aside(place(self._segments, record.file_id))
                gone.append(record)
        self._forget(rows, gone)

    # ---- segment files ---------------------------------------------------------------------------------
    def _restore(self, rows: Rows, record: SegmentRecord) -> bool:
        """Its file from the source, sealed as its row says."""
        if self._source is None:
            return False
        label = rows.label_of(record.key)
        try:
            found = self._source.segment(record.file_id[:2])
            description = verify(found)
            data_key = rows.collections[record.collection_id].key(record.generation)
        except HesearchError as error:
            self.done.append(f"{label}: the source has no sound one ({error})")
            return False
        if (description.collection_id, description.segment_id) != record.file_id[:2]:
            return False
        target, incoming = place(self._segments, record.file_id), self._root / "incoming"
        for folder in (incoming, target.parent):
            files.make_folder(folder, 0o700)
        length_bytes = description.file_bytes
        with (
            NewFile(incoming)
            if data_key is None
            else NewSealedFile(incoming, data_key, record.generation, *record.file_id[:2], length_bytes)
        ) as file:
            for start in range(0, length_bytes, CHUNK_BYTES):
                file.append(found.read(start, min(CHUNK_BYTES, length_bytes - start)))
            file.sync()
            self._put_aside(target)
            file.publish(target)
        files.sync_folder(target.parent)
        self.done.append(f"{label}: fetched from the source")
        return True

    def _put_aside(self, path: Path) -> None:
        """Durable in its new place before it leaves the old one."""
        if not path.exists():
            return
        target = self._aside / path.relative_to(self._root)
        if target.exists():  # from an earlier run within this second
            target = target.with_name(f"{target.name}.{time.time_ns()}")
        files.make_folder(target.parent, 0o700)
        with files.storage_errors("putting a file aside"):
            try:
                os.link(path, target)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                path.rename(target)
            files.sync_folder(target.parent)
            path.unlink(missing_ok=True)
            files.sync_folder(path.parent)
        self.done.append(f"moved {path.relative_to(self._root)} to {target.relative_to(self._root)}")

    # ---- the catalogue ---------------------------------------------------------------------------------
    def mend_catalogue(self, rows: Rows) -> bool:
        """A new one; false where nothing of it is sound. The old one is aside, and its log in it, before that."""
        catalogue = self._root / "catalogue.sqlite"
        if not rows.collections:
            self.done.append("catalogue: no collection's row is sound, so it was left as it is; restore a backup")
            return False
        for suffix in ("", "-wal"):
            self._copy_aside(catalogue.with_name(catalogue.name + suffix))
        new = catalogue.with_name(catalogue.name + ".new")
        for suffix in ("", "-wal", "-shm"):
            files.remove(new.with_name(new.name + suffix))
        fsck_catalogue.rebuild(new, rows, [self._row_of_file(rows, key) for key in rows.rowless])
        with (
            contextlib.suppress(TamperedDataError),
            sqlite_errors(),  # a full disk ends it here: all is as it was
            contextlib.closing(sqlite3.connect(catalogue)) as old,
        ):
            old.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        with files.storage_errors("replacing the catalogue"):
            for suffix in ("-wal", "-shm"):
                files.remove(catalogue.with_name(catalogue.name + suffix))
            files.sync_folder(self._root)
            new.rename(catalogue)
            files.sync_folder(self._root)
        self.done.append(f"catalogue: made anew of {len(rows.collections)} collections; the old one is aside")
        self._rebuilt = True
        return True

    def _copy_aside(self, path: Path) -> None:
        if not path.exists():
            return
        files.make_folder(self._aside, 0o700)
        source, length_bytes = PlainFile(path), path.stat().st_size
        with NewFile(self._aside) as file:
            for start in range(0, length_bytes, CHUNK_BYTES):
                file.append(source.read(start, min(CHUNK_BYTES, length_bytes - start)))
            file.sync()
            file.publish(self._aside / path.name)
        files.sync_folder(self._aside)

    def _row_of_file(self, rows: Rows, key: Key) -> tuple[SegmentRecord, float]:
        """A live segment's row, of its file's header; where that is not sound, either, one that no file matches."""
        state = rows.collections[key[0]]
        for file_id in _file_ids(key, state):
            with contextlib.suppress(HesearchError):
                found = read_description(open_source(place(self._segments, file_id), state.key(file_id[2])))
                if (found.collection_id, found.segment_id) == key:
                    sizes = (found.blocks, found.stored_bytes, found.index_bytes)
                    return SegmentRecord(*key, *sizes, file_id[2]), time.time()
        newest = state.newest_key
        return SegmentRecord(*key, 0, 0, 0, newest.generation if newest else 0), time.time()

    def _mend_row(self, rows: Rows, record: SegmentRecord) -> bool:
        """Where its file is sound and its row says something else of it: made of nothing, while nothing could be read.
        False: its file is not sound."""
        state = rows.collections[record.collection_id]
        try:
            found = verify(open_source(place(self._segments, record.file_id), state.key(record.generation)))
        except HesearchError:
            return False
        if (found.collection_id, found.segment_id) != record.file_id[:2]:
            return False
        if found.parameter_digest != state.record.parameter_digest:
            return False
        sizes = (found.blocks, found.stored_bytes, found.index_bytes)
        mended = SegmentRecord(*record.file_id[:2], *sizes, record.generation)
        if mended != record:
            key = record.file_id[:2]
            raw = segment_to_bytes(mended, rows.segments[key][1])
            cell = close_cell(rows.key, "segment", length_prefixed(*key), raw)
            self._change("UPDATE segments SET cell = ? WHERE collection_id = ? AND segment_id = ?", [(cell, *key)])
            self.done.append(f"{rows.label_of(record.key)}: its row was made anew of its file")
        return True

    def _forget(self, rows: Rows, records: list[SegmentRecord]) -> None:
        """Rows of segments that are not live and whose files are gone: their clients will send them again."""
        if records:
            statement = "DELETE FROM segments WHERE collection_id = ? AND segment_id = ?"
            self._change(statement, [record.file_id[:2] for record in records])
        self.done += [f"{rows.label_of(record.key)}: forgotten, as no manifest names it" for record in records]

    def _change(self, statement: str, values: list[tuple[bytes, ...]]) -> None:
        """In one transaction. Raises as Database."""
        with contextlib.closing(Database(self._root / "catalogue.sqlite")) as database, database.transaction() as db:
            db.executemany(statement, values)


class Donor:
    """A backup or another data folder that has the same segments."""

    def __init__(self, root: Path, kek: KeyProvider | None) -> None:
        """Raises as fsck.check."""
        self._segments = root / "segments"
        self._rows = fsck_catalogue.read(root / "catalogue.sqlite", kek)

    def segment(self, key: Key) -> Source:
        """Raises NotFound, TamperedDataError."""
        state = self._rows.collections.get(key[0])
        if state is None:
            raise NotFound("source: it does not have the collection")
        for file_id in _file_ids(key, state):
            if (path := place(self._segments, file_id)).exists():
                return open_source(path, state.key(file_id[2]))
        raise NotFound("source: it does not have the segment")


def _file_ids(key: Key, state: State) -> Iterator[FileId]:
    """Where its file may be, under the newest data key first."""
    generations = itertools.chain((k.generation for k in reversed(state.keys)), [0])
    return ((*key, generation) for generation in generations)
