"""A ServerConfig as TOML and as flags, both made from its fields: nothing is written twice."""

from __future__ import annotations

import argparse
import difflib
import json
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from he_engine.errors import InvalidInput
from he_server.config import ServerConfig

_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "str": (str,), "bool": (bool,)}
_ALIASES = {"grace_s": ("--grace",)}


# ---- TOML ----------------------------------------------------------------------------------------------------
def read_toml(path: Path) -> dict[str, Any]:
    """The fields that a file sets. Raises InvalidInput: it cannot be read, is no TOML, or a key or type is wrong."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidInput(f"config: {path} cannot be read as TOML: {reason}") from None
    known = {one.name: one for one in fields(ServerConfig)}
    values = {}
    for name, value in found.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise InvalidInput(
                f"config: got the key {name!r}, "
                + (f"expected {near[0]!r}?" if near else "which is none of `hesearch serve --data DIR --print-config`")
            )
        kind = str(known[name].type)
        types = _TYPES.get(kind, (str,))
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise InvalidInput(f"{name}: got {value!r}, expected {'str' if kind == 'Path' else kind}")
        values[name] = value
    return values


def to_toml(config: ServerConfig) -> str:
    """A file from which `read_toml` makes the same config again; each field's doc is a comment before it."""
    lines = []
    for group, members in _groups():
        lines += [f"# ---- {group} ----"]
        for one in members:
            lines += textwrap.wrap(one.metadata["doc"], 110, initial_indent="# ", subsequent_indent="# ")
            lines += [f"{one.name} = {_toml(getattr(config, one.name))}"]
        lines += [""]
    return "\n".join(lines)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _groups() -> Iterator[tuple[str, list[Field[Any]]]]:
    for group, members in groupby(fields(ServerConfig), lambda one: str(one.metadata["group"])):
        yield group, list(members)


# ---- flags ---------------------------------------------------------------------------------------------------
def add_flags(parser: argparse.ArgumentParser) -> None:
    """One for each field; in the namespace None where it was not given."""
    for title, members in _groups():
        group = parser.add_argument_group(title)
        for one in members:
            flags = (f"--{one.name.replace('_', '-')}", *_ALIASES.get(one.name, ()))
            text = one.metadata["doc"].replace("%", "%%") + _default(one)
            if one.name.startswith("no_"):
                group.add_argument(*flags, action="store_const", const=True, help=text)
                group.add_argument(
                    flags[0].replace("--no-", "--"), dest=one.name, action="store_const", const=False,
                    help=argparse.SUPPRESS,
                )  # fmt: skip
            elif one.type == "bool":
                group.add_argument(*flags, action=argparse.BooleanOptionalAction, help=text)
            else:
                kind = {"int": int, "float": float}.get(str(one.type), str)
                choices = one.metadata.get("choices")
                group.add_argument(*flags, type=kind, choices=choices, metavar=_metavar(one), help=text)


def _default(one: Field[Any]) -> str:
    return "" if one.default in (MISSING, "", False) else f" (default: {one.default})"


def _metavar(one: Field[Any]) -> str | None:
    if "choices" in one.metadata:
        return None
    return (
        "SECONDS" if one.name.endswith("_s") else {"int": "N", "float": "N", "Path": "DIR"}.get(str(one.type), "TEXT")
    )


def make_config(file: Path | None, flags: Mapping[str, Any]) -> ServerConfig:
    """The fields of `file` where there is one, overridden by those of `flags` that are not None.

    Raises InvalidInput, also where nothing says where the data is.
    """
    values = read_toml(file) if file else {}
    values |= {one.name: flags[one.name] for one in fields(ServerConfig) if flags.get(one.name) is not None}
    if not values.get("data"):
        raise InvalidInput("data: got none, expected a folder (--data, or data in the file of --config)")
    return ServerConfig(**values | {"data": Path(values["data"])})
