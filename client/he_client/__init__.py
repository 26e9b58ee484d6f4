"""hesearch: similarity search over fully encrypted embeddings.

key = CollectionKey.generate()
with Client(":memory:") as client:
    notes = client.create_collection("notes", dim=384, key=key)
    notes.insert(ids, vectors, payloads=texts)
    hits = notes.search(query, k=10)
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its core logs each handshake that fails; read when it is imported

from he_client.client import Client
from he_client.collection import Collection
from he_client.keys import CollectionKey
from he_client.released import ScoreReleaseWarning
from he_client.results import (
    ArchiveReport,
    CollectionInfo,
    CompactReport,
    FingerprintReport,
    Hit,
    RepairReport,
    ResealReport,
    SearchReport,
)
from he_engine.errors import (
    AlreadyExists,
    Conflict,
    DamagedDataError,
    DimensionError,
    DuplicateIdError,
    FormatVersionError,
    HesearchError,
    InvalidInput,
    LimitExceeded,
    MissingExtra,
    NormError,
    NotFound,
    ParameterError,
    ResidueError,
    RollbackError,
    SecretReuseError,
    TamperedAnswerError,
    TamperedDataError,
    Unavailable,
    WrongKeyError,
)

__all__ = [
    "AlreadyExists",
    "ArchiveReport",
    "Client",
    "Collection",
    "CollectionInfo",
    "CollectionKey",
    "CompactReport",
    "Conflict",
    "DamagedDataError",
    "DimensionError",
    "DuplicateIdError",
    "FingerprintReport",
    "FormatVersionError",
    "HesearchError",
    "Hit",
    "InvalidInput",
    "LimitExceeded",
    "MissingExtra",
    "NormError",
    "NotFound",
    "ParameterError",
    "RepairReport",
    "ResealReport",
    "ResidueError",
    "RollbackError",
    "ScoreReleaseWarning",
    "SearchReport",
    "SecretReuseError",
    "TamperedAnswerError",
    "TamperedDataError",
    "Unavailable",
    "WrongKeyError",
]
