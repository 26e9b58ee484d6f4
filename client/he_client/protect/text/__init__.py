"""Texts before they are embedded: identifiers found, and replaced by labels, pseudonyms, hashes or tokens.

pipeline = Pipeline([Tokenise("PERSON", vault), Pseudonymise("MRN", Pseudonyms(key, "mrn")), Redact("EMAIL_ADDRESS")],
                    Recognisers(names=["Anna Meyer"]))
pipeline("Anna Meyer, MRN 12345678, anna@example.org")  # "[PERSON:…], MRN [MRN#…], [EMAIL_ADDRESS]"
"""

from he_client.protect.text.hashing import SaltedHash
from he_client.protect.text.id_cipher import IdCipher
from he_client.protect.text.keys import PseudonymKey, VaultKey
from he_client.protect.text.pipeline import Pipeline, Protected
from he_client.protect.text.pseudonyms import Pseudonyms, collision_bound
from he_client.protect.text.recognisers import Recognisers
from he_client.protect.text.steps import Pseudonymise, Redact, Tokenise
from he_client.protect.text.vault import Vault

__all__ = [
    "IdCipher",
    "Pipeline",
    "Protected",
    "PseudonymKey",
    "Pseudonymise",
    "Pseudonyms",
    "Recognisers",
    "Redact",
    "SaltedHash",
    "Tokenise",
    "Vault",
    "VaultKey",
    "collision_bound",
]
