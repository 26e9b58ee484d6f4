"""Federated learning: hospitals train together, and who adds up their updates can read none (docs/federated.md).

    cipher = UpdateCipher(key, parameters, "north")           # key: shared by the hospitals, never by the aggregator
    update = cipher.encrypt(1, values, weight=records)        # → aggregator, which has no key → encrypted
    average = cipher.decrypt(1, encrypted)                    # checked first; the exact weighted average

`participant` puts that into a client of Flower; he_server.federated is the aggregator.
"""

from he_client.protect.federated.cipher import Average, UpdateCipher
from he_engine.encrypted_sums import EncryptedSum, SumParameters, Update

__all__ = ["Average", "EncryptedSum", "SumParameters", "Update", "UpdateCipher"]
