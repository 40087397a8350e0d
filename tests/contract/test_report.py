"""`AmortizedPosterior.report`: the page of a guide."""

import numpy as np
import pytest

from amortize_diagnostics import diagnosis, importance_summary
from tests.backends import small_guide
from tests.contract.test_calibration import judged


def test_a_page_shows_checks_training_sites_and_answers(host, tmp_path):
    model = host.models.eight_schools_noncentered
    guide = small_guide(host, model, observed="y", inputs={"sigma": "schools"})
    amortized = host.untrained(model, guide, host.array([9.0] * 5))
    path = tmp_path / "report.html"
    found = judged(host, "eight_schools_noncentered")
    answers = diagnosis(importance_summary(np.zeros((1000, 2))))
    amortized.report(path, calibration=found, diagnosis=answers, title="Schools")
    text = path.read_text(encoding="utf-8")
    for words in ("<h1>Schools</h1>", "2 data sets. Use: ", "Ranks of tau", "in schools", "z[4]"):
        assert words in text, words
    assert text.count('class="mark') == 5  # y, sigma, mu, tau, z


def test_a_model_that_cannot_be_checked_has_a_page_that_says_so(host, tmp_path):
    model = host.models.with_factor
    guide = small_guide(host, model, observed="y")
    amortized = host.untrained(model, guide)
    amortized.report(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Not checked on simulated data: factor site" in text
    assert "<h1>with_factor</h1>" in text


def test_a_guide_that_is_not_set_up_has_no_page(host, tmp_path):
    model = host.models.conjugate_normal
    amortized = host.package.AmortizedPosterior(model, small_guide(host, model, observed="x"))
    with pytest.raises(RuntimeError, match=r"call guide.setup"):
        amortized.report(tmp_path / "report.html")
