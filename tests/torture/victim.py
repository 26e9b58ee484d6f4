"""The client that is killed: it works on its rows and tells when an operation begins and when it was acknowledged."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

from he_client import Client, CollectionKey
from tests.torture.rows import Owner, small_segments


def work(link: Connection, address: str, name: str, key: bytes, owner: Owner) -> None:
    """Sends each operation before it runs, then None."""
    small_segments()
    with Client(address, insecure=True, threads=1) as client:
        opened = client.open_collection(name, key=CollectionKey(key))
        while True:
            operation = owner.begin()
            link.send(operation)
            operation.run(opened)
            owner.acknowledged()
            link.send(None)


def reseal(link: Connection, address: str, name: str, key: bytes, new_key: bytes, journal: Path) -> None:
    """Sends None when it begins."""
    small_segments()
    with Client(address, insecure=True, threads=1) as client:
        link.send(None)
        client.reseal_collection(
            name, key=CollectionKey(key), new_key=CollectionKey(new_key), journal=journal, progress=False
        )
