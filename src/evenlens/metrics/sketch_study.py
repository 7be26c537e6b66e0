"""What the sketching study reported, as its code computes it: to hold a result against the paper's, no more.

Source: the code of Yao, Cui, Li and Gu, 2022, Improving fairness in image classification via sketching, arXiv
2211.00168. None of these stands among the metrics of evenlens: those of faces are there under standard names, and those
of skin lesions are not what their names say.
"""

from __future__ import annotations

import numpy as np

from evenlens.errors import UserError
from evenlens.metrics.counts import count

BATCH = 32  # images of the study's validation batches, over which the quantities of skin lesions were averaged


def faces(prediction: np.ndarray, label: np.ndarray, group: np.ndarray) -> dict[str, float]:
    """Compute DP and DEO, on all images.

    DP is the metric demographic_parity_difference. DEO is the sum of the two groups' differences in true and in false
    positive rate, twice average_absolute_odds_difference.

    Args:
        prediction: (N,) 0 or 1.
        label: (N,) 0 or 1.
        group: (N,) 0 or 1.

    Returns:
        by the study's names; NaN where a group has no image of a label.

    Raises:
        UserError: there are more than two classes or groups.
    """
    counts = count(*_two_groups(prediction, label, group, 2), 2, 2).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        selected = counts[:, :, 1].sum(1) / counts.sum((1, 2))
        of_label = counts[:, :, 1] / counts.sum(2)  # (group, label)
    return {"DP": float(abs(selected[0] - selected[1])), "DEO": float(np.abs(of_label[0] - of_label[1]).sum())}


def skin_lesions(
    prediction: np.ndarray, label: np.ndarray, group: np.ndarray, num_classes: int, batch: int | None = BATCH
) -> dict[str, float]:
    """Compute SPD, EOD and AOD, each the mean over batches in the order of the rows.

    With n_cg images of class c in group g, h_cg of them predicted right and m_cg = n_cg - h_cg not:

        SPD = |accuracy of group 1 - accuracy of group 0|
        EOD = |mean over c of (h_c1 - h_c0) / (h_c0 + h_c1)|
        AOD = (EOD + |mean over c of (m_c1 - m_c0) / (m_c0 + m_c1)|) / 2

    where a class without a hit, or a miss, counts 0. SPD is a difference in accuracy, not in selection. EOD compares
    which *share* of the hits lies in each group, so that a perfect model has a large one where the groups are of
    different size. Standard quantities of these names are demographic_parity_difference, equal_opportunity_difference
    and average_absolute_odds_difference.

    Args:
        prediction: (N,) in [0, C).
        label: (N,) in [0, C).
        group: (N,) 0 or 1.
        num_classes: C.
        batch: rows of a batch; None takes all rows at once.

    Returns:
        by the study's names. A batch without one of the groups leaves SPD out of its mean, where the code divided
        zero by zero; NaN if that leaves none.

    Raises:
        UserError: there are more than two groups.
    """
    prediction, label, group = _two_groups(prediction, label, group, num_classes)
    size = batch or max(1, len(label))
    found = []
    for start in range(0, len(label), size):
        rows = slice(start, start + size)
        counts = count(prediction[rows], label[rows], group[rows], num_classes, 2).astype(np.float64)
        hits = counts.diagonal(axis1=1, axis2=2)  # (group, class)
        images = counts.sum(2)
        with np.errstate(invalid="ignore", divide="ignore"):
            accuracy = hits.sum(1) / images.sum(1)
        hit, missed = _shares_apart(hits), _shares_apart(images - hits)
        found.append((abs(accuracy[1] - accuracy[0]), hit, (hit + missed) / 2))
    values = np.array(found).reshape(-1, 3)
    defined = [column[~np.isnan(column)] for column in values.T]
    means = [float(column.mean()) if len(column) else float("nan") for column in defined]
    return dict(zip(("SPD", "EOD", "AOD"), means, strict=True))


def _shares_apart(images: np.ndarray) -> float:
    """Give |mean over classes of the difference of the groups' shares|, of (2, C) images."""
    total = images.sum(0)
    return float(abs(np.where(total > 0, (images[1] - images[0]) / np.maximum(total, 1), 0).mean()))


def _two_groups(
    prediction: np.ndarray, label: np.ndarray, group: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = [np.asarray(each, dtype=np.int64) for each in (prediction, label, group)]
    for what, each, number in zip(("prediction", "label", "group"), values, (num_classes, num_classes, 2), strict=True):
        if len(each) and not 0 <= each.min() <= each.max() < number:
            raise UserError(
                f"The {what} has values from {each.min()} to {each.max()}: the study's quantities are of {num_classes} "
                "classes and two groups, each a whole number from 0 on."
            )
    return values[0], values[1], values[2]
