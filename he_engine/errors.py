"""Every error that hesearch raises on purpose: one tree, one base class.

A message says what was got, what was expected and in which field. It never contains a vector, a score, a
secret or a key, so it is safe to log.
"""

from __future__ import annotations


class HesearchError(Exception):
    """Base of all errors of this project."""


class InvalidInput(HesearchError, ValueError):
    """The caller's argument is wrong; nothing was changed."""


class ParameterError(InvalidInput):
    """Scheme parameters are inconsistent or under 128 bits of security."""


class DimensionError(InvalidInput):
    """An array has the wrong dtype, number of axes or length."""


class NormError(InvalidInput):
    """A vector is not finite, is zero under cosine, or is longer than the declared bound."""


class DuplicateIdError(InvalidInput):
    """A row id occurs twice in one call, or is in the collection already."""


class ResidueError(HesearchError):
    """A residue is not canonical (≥ q_j) or a ciphertext has the wrong length."""


class SecretReuseError(HesearchError):
    """A secret was used after it was closed, twice where it serves once, elsewhere than meant, or was to be copied."""


class WrongKeyError(HesearchError):
    """The key does not open this collection or this key file (or the sealed bytes were altered)."""


class TamperedAnswerError(HesearchError):
    """The server's answer is not the one an honest server gives. What does not verify was not decrypted."""


class TamperedDataError(HesearchError):
    """Stored bytes do not match their digest or their seal."""


class DamagedDataError(TamperedDataError):
    """Bytes at rest are damaged: the server says so itself, or an archive here is. Nobody need have lied."""


class RollbackError(TamperedDataError):
    """The server showed an older or a forked state of a collection than this client has seen."""


class FormatVersionError(HesearchError):
    """A message or file has a format version or parameter digest that this side does not speak."""


class NotFound(HesearchError):
    """No such collection, segment or row."""


class AlreadyExists(HesearchError):
    """A collection of this name exists."""


class Conflict(HesearchError):
    """Another writer committed first; read the new manifest and try again."""


class LimitExceeded(HesearchError):
    """The request is larger than this server admits."""


class Unavailable(HesearchError):
    """The server cannot be reached, is shutting down, or the deadline passed."""


class Overloaded(Unavailable):
    """The server has as many calls as it takes; try again a little later."""


class Unauthenticated(HesearchError):
    """The server does not know who calls: no certificate or token that it accepts."""


class PermissionDenied(HesearchError):
    """The server knows who calls, and no policy lets them do this."""


class QuotaExceeded(HesearchError):
    """The caller has used up what a quota grants for now."""


class BudgetExceeded(HesearchError):
    """A privacy budget does not allow this release; nothing was spent and nothing released."""


class ReadOnlyError(HesearchError):
    """A sync to the server's disk failed: it takes no writes until it is started again; searches go on."""


class MissingExtra(HesearchError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""
