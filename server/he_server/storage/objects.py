"""Segment files on object storage: S3 and what speaks it, Google Cloud Storage, Azure (obstore).

    PREFIX/catalogue.id                                32 hexadecimal digits: of the catalogue that names these segments
    PREFIX/clock                                       empty; written to learn the storage's time
    PREFIX/COLLECTION_ID/SEGMENT_ID.GENERATION.COPY    a segment file as in a data folder, sealed as it is there

COPY is random: no name is ever written twice, so whoever removes an object removes no other's. Credentials and regions
are what obstore finds in the environment or asks the machine for, as its documentation says.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

from he_engine.engine import Buffer
from he_engine.errors import HesearchError, InvalidInput, MissingExtra, NotFound, TamperedDataError, Unavailable
from he_server.storage.catalogue_rows import SegmentRecord
from he_server.storage.causes import Causes
from he_server.storage.files import Listed
from he_server.storage.tally import Tally

try:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError
except ImportError as error:
    raise MissingExtra("obstore is not installed: pip install '.[cluster]'") from error

SCHEMES = ("s3", "gs", "az")
_ID, _CLOCK = "catalogue.id", "clock"
_NAME = re.compile(r"[0-9a-f]{32}/[0-9a-f]{64}\.[0-9]+\.[0-9a-f]{32}")
_WHOLE_BYTES = 16 << 20  #: up to this an object is sent in one request, which is refused where the name is taken
_PART_BYTES = 8 << 20  #: of other requests
_AT_ONCE = 4  #: requests for one object
_THREADS = 16
_RETRIES: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}
_CLIENT: Any = {"connect_timeout": "5s", "timeout": "180s"}


def name_of(record: SegmentRecord) -> str:
    """Of a segment's object, below the prefix."""
    copy = record.copy.hex()
    return f"{record.collection_id.hex()}/{record.segment_id.hex()}.{record.generation}.{copy}"


class Objects:
    """Thread-safe."""

    def __init__(self, url: str, tally: Tally | None = None) -> None:
        """url: SCHEME://BUCKET/PREFIX, for S3 with ?endpoint=URL. Raises InvalidInput. Nothing is asked for yet."""
        self._tally = tally or Tally()
        self._causes = Causes()
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            raise InvalidInput(f"segments: expected {', '.join(f'{scheme}://…' for scheme in SCHEMES)}, or nothing")
        endpoint = parse_qs(parts.query).get("endpoint", [""])[0]
        options: Any = {"endpoint": endpoint} if endpoint else {}
        client: Any = _CLIENT | {"allow_http": endpoint.startswith("http://")}
        where = urlunsplit(parts._replace(query=""))
        try:
            self._store: Any = obstore.store.from_url(where, client_options=client, retry_config=_RETRIES, **options)
        except (BaseError, ValueError, TypeError) as error:
            raise InvalidInput(f"segments: {type(error).__name__}: object storage cannot be used like that") from error
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="objects")

    @contextlib.contextmanager
    def _errors(self, doing: str, missing: type[HesearchError] = TamperedDataError) -> Iterator[None]:
        """Failures are counted, and become errors of ours that name no address, bucket or key; the log has why."""
        try:
            yield
        except FileNotFoundError as error:
            if missing is Unavailable:  # the bucket is, then
                self._failed(f"storage: NotFound while {doing}", error)
            raise missing(f"storage: NotFound while {doing}; nothing was changed") from error
        except (BaseError, OSError, ValueError) as error:
            self._failed(failure := f"storage: {type(error).__name__} while {doing}", error)
            raise Unavailable(f"{failure}; nothing was changed") from error

    def _failed(self, failure: str, error: Exception) -> None:
        self._tally.add("object_failures")
        self._causes.say(failure, str(error).partition("\n")[0])  # what follows is for who debugs obstore

    def place_id(self) -> bytes:
        """16 random bytes, made by whoever asks first. Raises Unavailable."""
        with contextlib.suppress(NotFound):  # looked for first: some servers that speak S3 put over what is there
            return self.known_place_id()
        with self._errors("making the storage's id", Unavailable), contextlib.suppress(AlreadyExistsError):
            obstore.put(self._store, _ID, secrets.token_hex(16).encode(), mode="create")
        return self.known_place_id(Unavailable)

    def known_place_id(self, missing: type[HesearchError] = NotFound) -> bytes:
        """The same, without making it. Raises `missing` where nobody made it, Unavailable."""
        with self._errors("reading the storage's id", missing):
            return bytes.fromhex(bytes(obstore.get(self._store, _ID).bytes()).decode())

    def now_s(self) -> float:
        """Unix time by the storage's clock. Raises Unavailable."""
        with self._errors("asking for the storage's time", Unavailable):
            obstore.put(self._store, _CLOCK, b"")
            return float(obstore.head(self._store, _CLOCK)["last_modified"].timestamp())

    def put(self, record: SegmentRecord, path: Path) -> None:
        """A file as the object of a segment: complete, and there for everybody, when it returns. Raises Unavailable."""
        name, length_bytes = name_of(record), path.stat().st_size
        with self._errors("storing a segment", Unavailable):  # then it is the bucket
            if length_bytes <= _WHOLE_BYTES:
                with contextlib.suppress(AlreadyExistsError):  # a request that was repeated, since it had no answer
                    obstore.put(self._store, name, path, mode="create")
            else:
                obstore.put(self._store, name, path, chunk_size=_PART_BYTES, max_concurrency=_AT_ONCE)
        if (size := self.size_bytes(record)) != length_bytes:
            raise Unavailable(f"storage: got an object of {size} bytes, expected {length_bytes}; nothing was changed")
        self._tally.add("object_puts")
        self._tally.add("object_put_bytes", length_bytes)

    def size_bytes(self, record: SegmentRecord) -> int:
        """Raises TamperedDataError where there is none, Unavailable."""
        with self._errors("looking at a segment"):
            return int(obstore.head(self._store, name_of(record))["size"])

    def read(self, record: SegmentRecord, length_bytes: int) -> Iterator[Buffer]:
        """All of an object, in order, by several requests at a time. Raises as `size_bytes`."""
        name = name_of(record)
        coming: deque[Future[Buffer]] = deque()
        starts = iter(range(0, length_bytes, _PART_BYTES))
        try:
            while True:
                while len(coming) < _AT_ONCE and (start := next(starts, None)) is not None:
                    coming.append(self._pool.submit(self._range, name, start, min(start + _PART_BYTES, length_bytes)))
                if not coming:
                    return
                yield coming.popleft().result()
        finally:
            for one in coming:
                one.cancel()

    def _range(self, name: str, start: int, end: int) -> Buffer:
        with self._errors("reading a segment"):
            found: Buffer = memoryview(obstore.get_range(self._store, name, start=start, end=end))
            return found

    def remove(self, names: Iterable[str]) -> None:
        """Those that there are. Raises Unavailable, and then some may be there still."""
        wanted = list(names)
        if wanted:
            with self._errors("removing segments"), contextlib.suppress(FileNotFoundError):
                obstore.delete(self._store, wanted)

    def list(self) -> Iterator[Listed]:
        """Every segment's object; what has another kind of name is not ours. Raises Unavailable."""
        with self._errors("listing segments"):
            for page in obstore.list(self._store, chunk_size=1000):
                for found in page:
                    if _NAME.fullmatch(found["path"]):
                        yield Listed(found["path"], found["last_modified"].timestamp(), found["size"])

    @property
    def has_segments(self) -> bool:
        """Raises Unavailable."""
        return any(True for _ in self.list())

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
