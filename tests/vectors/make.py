"""Makes the test vectors beside this file: `python -m tests.vectors.make`.

The same each time, as long as formats and mutators are. Run it when a format or a parameter gets a new version.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from he_engine.params import Profile
from tests.vectors import malformed, valid

FOLDER = Path(__file__).parent


def made() -> dict[str, Any]:
    """What is right, by file."""
    return plain(
        {
            "primitives.json": valid.primitives(),
            "small.json": {profile.value: valid.small(profile) for profile in (Profile.COMPACT, Profile.EXACT)},
            **{f"{name}.json": {"runs": [valid.run(*run) for run in runs]} for name, runs in valid.RUNS.items()},
        }
    )


def plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


def lines(entries: Iterable[tuple[str, Any]]) -> str:
    """An object with a line for each member."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in entries) + "\n}\n"


def main() -> None:
    right = made()
    for name, content in right.items():
        (FOLDER / name).write_text(lines(content.items()))
    wrong = {"engine": malformed.engine(right["engine-compact.json"]["runs"][0]), **malformed.files()}
    rows = [f"{json.dumps(kind)}: [\n" + ",\n".join(map(json.dumps, some)) + "\n]" for kind, some in wrong.items()]
    (FOLDER / "malformed.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
    print({name: len(some) for name, some in wrong.items()})


if __name__ == "__main__":
    main()
