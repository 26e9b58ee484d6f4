"""All targets by name; each is made when it is wanted."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz import access, audit, formats, key_files, messages, stored
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
    "key-ring": key_files.key_ring_target,
    "shared-key": key_files.shared_key_target,
    "key-share": key_files.key_share_target,
    "jwks": access.jwks_target,
    "token": access.token_target,
    "policies": access.policies_target,
    "groups": access.groups_target,
    "quotas": access.quotas_target,
    "audit-log": audit.log_target,
    "audit-opened": audit.opened_target,
}
