"""All targets by name; each is made when it is wanted."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz import formats, messages, stored
from tests.fuzz.target import Target

TARGETS: dict[str, Callable[[], Target]] = {
    "requests": messages.requests_target,
    "responses": messages.responses_target,
    "segment-file": formats.segment_target,
    "sealed-file": stored.sealed_target,
    "catalogue-cell": stored.catalogue_target,
    "archive": stored.archive_target,
    "manifest": formats.manifest_target,
    "row-table": formats.rows_target,
    "payload": formats.payload_target,
    "key-file": formats.key_file_target,
    "reseal-journal": formats.journal_target,
    "backup-list": stored.backup_list_target,
    "config-file": stored.config_target,
    "vector-files": formats.vectors_target,
}
