"""A classifier's accuracy in telling two samples apart."""

import numpy as np
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier


def c2st(draws, reference, seed=1):
    """Cross-validated accuracy: 0.5 where both samples look alike, 1 where they are separable.

    Args:
        draws: Draws of a guide, `(num, dim)`.
        reference: As many from the posterior; their mean and sd scale both.
        seed: Of the classifier and of the folds.

    References:
        Lopez-Paz and Oquab (2017), arXiv:1610.06545; the settings of Lueckmann and others (2021),
        arXiv:2101.04653: five folds, two layers of 10 units for each dimension.
    """
    if draws.shape != reference.shape:
        raise ValueError(f"draws: expected shape {reference.shape}, got {draws.shape}")
    loc, scale = reference.mean(0), reference.std(0)
    inputs = (np.concatenate([draws, reference]) - loc) / scale
    labels = np.repeat([0, 1], len(reference))
    width = 10 * draws.shape[1]
    classifier = MLPClassifier((width, width), max_iter=1000, random_state=seed)
    folds = KFold(5, shuffle=True, random_state=seed)
    return float(np.mean(cross_val_score(classifier, inputs, labels, cv=folds)))
