"""The JSON files of one `make bench`, and Markdown made of figures."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
FOLDER = "{folder}"  #: in a link: the folder of plots, wherever the text will be


class Run:
    """The JSON files of one run of `make bench`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, name: str) -> Figures:
        """Raises FileNotFoundError."""
        loaded: Figures = json.loads((self._folder / f"{name}.json").read_text())
        return loaded

    def found(self, *names: str) -> dict[str, Figures]:
        """Those that were measured. Raises FileNotFoundError if none was."""
        measured = {name: self.load(name) for name in names if (self._folder / f"{name}.json").exists()}
        if not measured:
            raise FileNotFoundError(f"{names[0]}.json")
        return measured

    def everything(self) -> dict[str, Figures]:
        return {path.stem: self.load(path.stem) for path in sorted(self._folder.glob("*.json"))}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return ["", *(f"| {' | '.join(line)} |" for line in lines), ""]


def number(value: float | None, form: str = ".2f", scale: float = 1) -> str:
    """– for what was not measured."""
    return "–" if value is None else format(value * scale, form)


def ms(seconds: float | None) -> str:
    digits = next((n for n, below in ((3, 1e-3), (2, 1e-2), (1, 0.1)) if (seconds or 0) < below), 0)
    return number(seconds, f",.{digits}f", 1e3)


def command(module: str, arguments: Mapping[str, Any]) -> str:
    words = [f"python -m benchmarks.{module}"]
    for name, value in arguments.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif isinstance(value, list) and value:
            words.append(f"{option} {' '.join(map(str, value))}")
        elif value is not False and value not in (None, "", []):
            words.append(f"{option} {shlex.quote(str(value))}")
    return " ".join(words)


def commands(module: str, runs: Iterable[Figures]) -> list[str]:
    """What made these figures, in a block of code; commands that differ in the profile alone are one."""
    every = [figures["arguments"] for figures in runs]
    if len({arguments.get("profile") for arguments in every}) > 1:
        every = [arguments | {"profile": "PROFILE"} for arguments in every]
    return ["```sh", *dict.fromkeys(command(module, arguments) for arguments in every), "```"]


def picture(name: str) -> list[str]:
    return ["", f"![{name}]({FOLDER}/{name}.svg)"]
