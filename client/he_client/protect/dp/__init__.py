"""Differential privacy: noisy embeddings and classifiers, paid from a budget that is kept on disk (docs/privacy.md).

budget = PrivacyBudget.open("patients.budget", epsilon=3, delta=1e-6)
noisy = release_embeddings(vectors, epsilon=1, delta=1e-7, budget=budget)
"""

from he_client.protect.dp.budget import BudgetReport, PrivacyBudget
from he_client.protect.dp.embeddings import public_projection, release_embeddings
from he_client.protect.dp.gaussian import GaussianMechanism
from he_client.protect.dp.ledger import Spending
from he_client.protect.dp.training import LinearClassifier, train_classifier
from he_engine.errors import BudgetExceeded

__all__ = [
    "BudgetExceeded",
    "BudgetReport",
    "GaussianMechanism",
    "LinearClassifier",
    "PrivacyBudget",
    "Spending",
    "public_projection",
    "release_embeddings",
    "train_classifier",
]
