"""`hesearch protect`: identifiers in files of texts replaced, and tokens put back. docs/text.md says against whom."""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from he_client.commands.common import Subparsers, counted, report
from he_client.commands.key_locks import PASSPHRASE_FILE, add_locking, add_verb, load, save
from he_client.commands.key_paths import add_unlocking, key_path
from he_client.commands.text_files import TEXT, Row, has_columns, text_file
from he_client.files import read_lines
from he_client.protect.text import (
    Pipeline,
    Pseudonymise,
    PseudonymKey,
    Pseudonyms,
    Recognisers,
    Redact,
    Tokenise,
    Vault,
    VaultKey,
)
from he_client.protect.text.pipeline import TEXTS_AT_A_TIME
from he_client.protect.text.recognisers import PERSON
from he_client.protect.text.steps import Step
from he_client.protect.text.vault import TOKEN
from he_engine.errors import InvalidInput

_ORDER = (Tokenise, Pseudonymise, Redact)  #: decides overlaps
KINDS = {"pseudonyms": PseudonymKey, "vault": VaultKey}
_VAULT_PASSPHRASE = "--vault-passphrase-file"
_WHOLE = r"(?s)\S(?:.*\S)?"  #: a cell, without the white space around it


def add_protect_commands(subparsers: Subparsers) -> None:
    text = "texts before they are embedded: identifiers replaced by labels, pseudonyms or tokens; tokens put back"
    parser = subparsers.add_parser(
        "protect", help=text, description=text, epilog="example:\n  hesearch protect text notes.txt safe.txt",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_keygen(verbs)
    _add_text(verbs)
    _add_reveal(verbs)


def _add_keygen(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs, "keygen", _keygen, "make a key for pseudonyms, or one for vaults; no file is ever overwritten",
        "vault.key --of vault", "protect",
    )  # fmt: skip
    parser.add_argument("path", type=key_path, metavar="KEY", help="a file, or ring:NAME")
    parser.add_argument("--of", choices=tuple(KINDS), required=True, help="what it is the key of")
    add_locking(parser)
    parser.add_argument(PASSPHRASE_FILE, type=Path, help="read the passphrase from the first line of this file")


def _keygen(arguments: argparse.Namespace) -> int:
    save(KINDS[arguments.of].generate(), arguments.path, arguments)
    text = f"wrote {arguments.path}: whoever has it and what unlocks it can undo, or test guesses of, what it protects"
    return report(arguments, {"key": str(arguments.path)}, text)


def _add_text(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs, "text", _text, "replace identifiers in a file of texts: lines, .csv or .jsonl. What patterns find is "
        "redacted unless another option takes it; names of people are found with --names or --model only.",
        "notes.csv safe.csv --column note --ids mrn=MRN --pseudonymise MRN --key p.key \\\n"
        "    --names names.txt --tokenise PERSON --vault names.vault --vault-key vault.key", "protect",
    )  # fmt: skip
    _add_files(parser)
    parser.add_argument("--column", action="append", default=[], help="that holds texts (.csv, .jsonl); repeatable")
    parser.add_argument(
        "--ids", action="append", default=[], metavar="COLUMN=ENTITY", help="its cells are such identifiers as a whole"
    )
    parser.add_argument("--keep", action="append", default=[], metavar="ENTITY", help="leave these as they are")
    parser.add_argument("--pseudonymise", action="append", default=[], metavar="ENTITY", help="needs --key")
    parser.add_argument("--tokenise", action="append", default=[], metavar="ENTITY", help="needs --vault, --vault-key")
    parser.add_argument(
        "--pattern", action="append", default=[], metavar="ENTITY=REGEX", help="find these, too (its first group)"
    )
    parser.add_argument("--names", type=Path, metavar="FILE", help="names of people, one a line, to find as PERSON")
    parser.add_argument("--model", help="of spaCy, installed, or a folder: finds more, such as PERSON")
    parser.add_argument("--key", type=key_path, help="for pseudonyms; `hesearch protect keygen` makes one")
    add_unlocking(parser)
    _add_vault(parser, required=False)


def _text(arguments: argparse.Namespace) -> int:
    identifiers = _pairs(arguments.ids, "--ids", "COLUMN=ENTITY")
    columns = _columns(arguments, [column for column, _ in identifiers])
    patterns = _pairs(arguments.pattern, "--pattern", "ENTITY=REGEX")
    recognisers = Recognisers(read_lines(arguments.names) if arguments.names else (), model=arguments.model)
    actions = _Actions(
        arguments, recognisers, {entity for _, entity in identifiers} | {entity for entity, _ in patterns}
    )
    found = [actions.step(entity, pattern) for entity, pattern in patterns if entity not in arguments.keep]
    found += [actions.step(entity, None) for entity in sorted(recognisers.entities - set(arguments.keep))]
    of_texts = Pipeline(sorted(found, key=lambda step: _ORDER.index(type(step))), recognisers)
    pipelines = [(column, of_texts) for column in columns]
    pipelines += [(column, Pipeline([actions.step(entity, _WHOLE)])) for column, entity in identifiers]
    replaced: Counter[str] = Counter()
    count = 0
    with text_file(arguments.source, arguments.target, "protect") as file:
        for rows in _some(file.rows([column for column, _ in pipelines])):
            for column, pipeline in pipelines:
                cells = [row for row in rows if row[column] is not None]
                texts = [row[column] for row in cells]
                for row, protected in zip(cells, pipeline.run(texts, progress=False), strict=True):
                    row[column] = protected.text
                    replaced.update(span.entity for span in protected.spans)
                count += len(cells)
            file.write(rows)
    counts = dict(sorted(replaced.items()))
    listed = ", ".join(f"{number} {entity}" for entity, number in counts.items()) or "nothing"
    text = f"wrote {arguments.target}: {counted(count, 'text')}; replaced {listed}"
    if PERSON not in recognisers.entities:
        text += "; names of people were not looked for (--names, --model)"
    return report(arguments, {"texts": count, "replaced": counts}, text)


def _columns(arguments: argparse.Namespace, identifiers: Sequence[str]) -> list[str]:
    """Of texts, not of identifiers."""
    columns = list(arguments.column)
    if not has_columns(arguments.source):
        if columns or identifiers:
            raise InvalidInput(f"{arguments.source}: has no columns; --column and --ids are for .csv and .jsonl")
        return [TEXT]
    if not columns and not identifiers:
        raise InvalidInput(f"{arguments.source}: has columns; name those to protect with --column or --ids")
    if len({*columns, *identifiers}) < len(columns) + len(identifiers):
        raise InvalidInput("--column, --ids: got a column twice, expected each once")
    return columns


class _Actions:
    """Which step takes an entity, as the options say."""

    def __init__(self, arguments: argparse.Namespace, recognisers: Recognisers, others: set[str]) -> None:
        named = [*arguments.tokenise, *arguments.pseudonymise, *arguments.keep]
        recognisers.require(entity for entity in named if entity not in others)
        if len(set(named)) < len(named):
            raise InvalidInput("--tokenise, --pseudonymise, --keep: got an entity twice, expected one option for each")
        self._tokenised, self._pseudonymised = arguments.tokenise, arguments.pseudonymise
        if self._pseudonymised:
            if arguments.key is None:
                raise InvalidInput("--pseudonymise: needs --key")
            self._key = load(PseudonymKey, arguments.key, arguments)
        if self._tokenised:
            self._vault = _vault(arguments)

    def step(self, entity: str, pattern: str | None) -> Step:
        if entity in self._tokenised:
            return Tokenise(entity, self._vault, pattern)
        if entity in self._pseudonymised:
            return Pseudonymise(entity, Pseudonyms(self._key, entity), pattern)
        return Redact(entity, pattern=pattern)


def _add_reveal(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs, "reveal", _reveal, "put the values back that tokens of a vault stand for, in every column",
        "safe.csv again.csv --vault names.vault --vault-key vault.key", "protect",
    )  # fmt: skip
    _add_files(parser)
    _add_vault(parser, required=True)


def _reveal(arguments: argparse.Namespace) -> int:
    vault = _vault(arguments)
    revealed = unknown = 0
    with text_file(arguments.source, arguments.target, "reveal") as file:
        for rows in _some(file.rows(())):
            for row in rows:
                for column, text in row.items():
                    if type(text) is str:
                        tokens, others = len(TOKEN.findall(text)), len(vault.unknown(text))
                        row[column] = vault.reveal(text)
                        revealed, unknown = revealed + tokens - others, unknown + others
            file.write(rows)
    text = f"wrote {arguments.target}: put {counted(revealed, 'value')} back"
    if unknown:
        text += f"; {counted(unknown, 'token')} of other vaults stayed"
    return report(arguments, {"revealed": revealed, "unknown": unknown}, text)


# ---- what they share -------------------------------------------------------------------------------------
def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="UTF-8: .csv with a header, .jsonl, or else a text a line")
    parser.add_argument("target", type=Path, help="where to write it; never overwritten")


def _add_vault(parser: argparse.ArgumentParser, required: bool) -> None:
    made = "" if required else "; made where it is missing"
    parser.add_argument("--vault", type=Path, required=required, metavar="FILE", help=f"of the tokens{made}")
    parser.add_argument("--vault-key", type=key_path, required=required, metavar="KEY", help="opens the vault")
    parser.add_argument(_VAULT_PASSPHRASE, type=Path, help="the same as --passphrase-file, for the vault's key")
    if required:
        parser.add_argument(
            "--key-program", metavar="PROGRAM", help="what unwraps a key that was locked with exec:PROGRAM"
        )


def _vault(arguments: argparse.Namespace) -> Vault:
    if arguments.vault is None or arguments.vault_key is None:
        raise InvalidInput("--tokenise: needs --vault and --vault-key")
    key = load(VaultKey, arguments.vault_key, arguments, _VAULT_PASSPHRASE)
    making = arguments.verb == "text" and not arguments.vault.exists()
    return (Vault.create if making else Vault.open)(arguments.vault, key)


def _some(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while some := list(itertools.islice(rows, TEXTS_AT_A_TIME)):
        yield some


def _pairs(given: Sequence[str], option: str, expected: str) -> list[tuple[str, str]]:
    pairs = []
    for text in given:
        left, equals, right = text.partition("=")
        if not (left and equals and right):
            raise InvalidInput(f"{option}: got {text!r}, expected {expected}")
        pairs.append((left, right))
    return pairs
