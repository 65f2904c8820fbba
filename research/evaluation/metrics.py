"""Pixel metrics of the field over pooled pixels, exact: AUROC, AP and F1-max (Sec. 4.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PRO_LIMIT = 0.3  # false positive rate up to which PRO is integrated (Bergmann et al. 2020)


def pixel_metrics(scores: NDArray[np.float32], labels: NDArray[np.bool_]) -> dict[str, float]:
    """AUROC, AP and F1-max of flat arrays of the same length (any shape is flattened).

    Raises ValueError when only one class is present: none of the three is defined then.
    """
    # With it come SciPy and pandas, a quarter of the time that a training takes to start.
    from sklearn.metrics import precision_recall_curve, roc_auc_score

    scores, labels = np.ravel(scores), np.ravel(labels)
    if labels.all() or not labels.any():
        raise ValueError("AUROC, AP and F1-max need both defective and good pixels (or images).")
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return {
        "auroc": float(roc_auc_score(labels, scores)),
        "ap": float(-np.sum(np.diff(recall) * precision[:-1])),  # as sklearn's, of the same curve
        "f1_max": float(f1.max()),
    }
