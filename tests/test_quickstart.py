"""The README's quickstart, run exactly as printed, in an empty folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def test_quickstart_runs_as_printed(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    quickstart = blocks[0]
    statements = [line for line in quickstart.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(statements) == 6, "six lines"
    (tmp_path / "quickstart.py").write_text(quickstart)
    ran = subprocess.run(
        [sys.executable, "quickstart.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"Hit\(id=42, score=(0\.999|1\.000)", ran.stdout) and "payload='note 42'" in ran.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["quickstart.py"]
