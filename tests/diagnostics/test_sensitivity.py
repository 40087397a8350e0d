"""What a probe of small changes says in words."""

import numpy as np

from amortize_diagnostics import Sensitivity


def test_the_text_names_radii_shifts_and_the_worst_data_set():
    found = Sensitivity(
        radii=np.array([0.1, 1.0]),
        divergence=np.array([[0.001, 0.002, 0.003], [0.1, 0.5, 0.2]]),
        se=np.full((2, 3), 1e-4),
        trace=np.array([1.0, 2.0, 3.0]),
        largest=np.array([0.5, 1.0, 1.5]),
        changes={"y": np.zeros((2, 3, 4))},
    )
    assert found.worst == 1
    np.testing.assert_allclose(found.shift[1], np.sqrt([0.2, 1.0, 0.4]))
    assert str(found).splitlines() == [
        "3 data sets. Worst changes of the data found:",
        "  0.1 data sd: 0.002 nats in the median, at most 0.003, as a shift of 0.08 sd",
        "  1 data sd: 0.2 nats in the median, at most 0.5, as a shift of 1.00 sd (data set 1)",
        "Fisher information about the data: trace 2, largest eigenvalue 1 in the median.",
    ]


def test_noise_below_zero_is_no_shift():
    one = np.ones((1, 1))
    found = Sensitivity(one[0], -0.01 * one, one, one[0], one[0], {"y": one})
    assert found.shift[0, 0] == 0.0
    assert "as a shift of 0.00 sd" in str(found)
