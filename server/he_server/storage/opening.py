"""Where a store's catalogue and segments are, as it is configured: in the data folder, or elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from he_server.storage.catalogue import Catalogue
from he_server.storage.folder import Folder
from he_server.storage.indexes import Indexes
from he_server.storage.kek import KeyProvider
from he_server.storage.segments import Segments
from he_server.storage.tally import Tally
from he_server.storage.writes import Writes

if TYPE_CHECKING:  # what brings extras is imported where it is wanted
    from he_server.storage.objects import Objects


def open_objects(url: str, tally: Tally | None = None) -> Objects | None:
    """None for no URL. Raises InvalidInput, MissingExtra."""
    if not url:
        return None
    from he_server.storage.objects import Objects

    return Objects(url, tally)


def open_catalogue(
    folder: Folder,
    url: str,
    objects: Objects | None,
    kek: KeyProvider | None,
    previous_kek: KeyProvider | None,
    tally: Tally,
) -> Catalogue:
    """url: of PostgreSQL, or empty. Raises as Store."""
    if not url:
        folder.require_catalogue()
        return Catalogue(folder.catalogue, kek, previous_kek)
    from he_server.storage.catalogue_shared import SharedCatalogue

    catalogue = SharedCatalogue(url, kek, previous_kek, tally)
    try:
        if objects is None:
            catalogue.require_place(folder.catalogue_id(), folder.has_segments)
        else:
            place_id = objects.place_id()
            folder.require_objects(place_id)
            catalogue.require_place(place_id, objects.has_segments)
    except BaseException:
        catalogue.close()
        raise
    return catalogue


def open_segments(
    objects: Objects | None,
    cache_bytes: int,
    age_s: float,
    folder: Folder,
    catalogue: Catalogue,
    writes: Writes,
    indexes: Indexes,
    clock_s: Callable[[], float],
    tally: Tally,
) -> Segments:
    """age_s: see RemoteSegments."""
    if objects is None:
        return Segments(folder, catalogue, writes, indexes, clock_s)
    from he_server.storage.remote_segments import RemoteSegments

    return RemoteSegments(folder, catalogue, writes, indexes, clock_s, objects, cache_bytes, age_s, tally)
