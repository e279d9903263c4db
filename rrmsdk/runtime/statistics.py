"""What logits say of how sure a network is."""

from __future__ import annotations

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def margins(probabilities: np.ndarray) -> np.ndarray:
    """Of each image: how far the largest probability is above the second."""
    second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
    return first - second
