"""A key split into n shares, any k of which restore it; fewer tell nothing of it (Shamir, as in SLIP-39).

What is split are the key's own 32 bytes, without a passphrase: a backup must not depend on a second thing that can be
lost. A share is text for paper: the key's id, and 33 words of SLIP-39's list, three of them a checksum that finds any
three mistyped words. PyPI `shamir-mnemonic` computes, the reference implementation of SatoshiLabs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from he_client.keys import MAX_FILE_BYTES, CollectionKey, read_key_file, write_new
from he_engine.errors import InvalidInput, MissingExtra, TamperedDataError
from he_engine.keys import KEY_BYTES

MAX_SHARES = 16  #: of SLIP-39
_HEADER = re.compile(r"hesearch key ([0-9a-f]{16}), share \d+ of \d+; any \d+ of them restore it\n")
_WORDS_A_LINE = 5


class ShareError(InvalidInput):
    """A share is mistyped, incomplete or no share."""


class MixedSharesError(InvalidInput):
    """The shares are of several keys, or of several backups of one."""


class TooFewSharesError(InvalidInput):
    """Fewer shares than are needed to restore the key."""


def backup_key(key: CollectionKey, shares: int, needed: int, folder: Path) -> list[Path]:
    """Write `shares` files to a new or empty folder. Any `needed` of them restore the key.

    Raises InvalidInput unless 2 ≤ needed ≤ shares ≤ 16 and the folder is empty; MissingExtra.
    """
    if not 2 <= needed <= shares <= MAX_SHARES:
        raise InvalidInput(f"shares: got any {needed} of {shares}, expected 2 ≤ needed ≤ shares ≤ {MAX_SHARES}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInput(f"shares: {folder} is not an empty folder; shares of two backups must not mix")
    library, root = _library(), key.reveal()
    (mnemonics,) = library.generate_mnemonics(1, [(needed, shares)], bytes(root), iteration_exponent=0)
    root[:] = bytes(KEY_BYTES)
    for some in (mnemonics[:needed], mnemonics[-needed:]):
        if CollectionKey(library.combine_mnemonics(some)).key_id != key.key_id:
            raise AssertionError("the shares do not restore the key")
    folder.mkdir(mode=0o700, exist_ok=True)
    paths = [folder / f"share-{number}-of-{shares}.txt" for number in range(1, shares + 1)]
    for number, (path, mnemonic) in enumerate(zip(paths, mnemonics, strict=True), 1):
        words = mnemonic.split()
        lines = [" ".join(words[i : i + _WORDS_A_LINE]) for i in range(0, len(words), _WORDS_A_LINE)]
        header = f"hesearch key {key.key_id}, share {number} of {shares}; any {needed} of them restore it\n"
        write_new(path, header + "\n".join(lines) + "\n")
    return paths


def restore_key(paths: Sequence[Path]) -> CollectionKey:
    """The key of these shares; more than are needed, and one twice, do no harm.

    Raises NotFound, ShareError, MixedSharesError, TooFewSharesError, MissingExtra; TamperedDataError where shares that
    are all well formed restore another key than they name.
    """
    library = _library()
    parsed = [_parse(library, path) for path in paths]
    if len({(key_id, share.group_parameters()) for key_id, share in parsed}) > 1:
        raise MixedSharesError("shares: they are of several keys or backups; take those of one")
    by_index = {share.index: share for _, share in parsed}
    needed = parsed[0][1].member_threshold if parsed else 2
    if len(by_index) < needed:
        raise TooFewSharesError(f"shares: got {len(by_index)} different ones, expected {needed}")
    mnemonics = [share.mnemonic() for share in by_index.values()][:needed]
    try:
        key = CollectionKey(library.combine_mnemonics(mnemonics))
    except (library.MnemonicError, InvalidInput):
        raise TamperedDataError("shares: one was made up or altered; try others") from None
    if key.key_id != parsed[0][0]:
        raise TamperedDataError("shares: they restore another key than they name; one was made up or altered")
    return key


def _parse(library: Any, path: Path) -> tuple[str, Any]:
    """The key's id, and the share. Spaces, line ends and capitals do not matter after the first line."""
    raw = read_key_file(path)
    try:
        text = raw.decode("ascii")
        if len(raw) > MAX_FILE_BYTES or not (header := _HEADER.match(text)):
            raise ValueError
        share = library.Share.from_mnemonic(" ".join(text[header.end() :].lower().split()))
        if share.iteration_exponent:  # ours have 0, and 15 would stretch for minutes
            raise ValueError
        return header[1], share
    except (ValueError, library.MnemonicError):
        raise ShareError(f"{path}: no share of a key, or a word is wrong or missing") from None


def _library() -> Any:
    try:
        import shamir_mnemonic
    except ImportError:
        raise MissingExtra("shamir-mnemonic is not installed: pip install '.[key-backup]'") from None
    return shamir_mnemonic
