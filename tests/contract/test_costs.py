"""What makes training and answers fast: how often the host runs the model, what compiles anew."""

from functools import wraps

import numpy as np
import pytest

from tests.backends import host as adapter
from tests.conftest import require

STEPS = 50, 100  # both whole numbers of reports, which are never closer than 50 steps
X = np.zeros(20)


def counted(model):
    """The model, and a list with an entry for each time that Python runs it."""
    runs = []

    @wraps(model)
    def counting(*args, **kwargs):
        runs.append(args)
        return model(*args, **kwargs)

    return counting, runs


def runs_of_training(host, objective, num_steps, **options):
    model, runs = counted(host.models.conjugate_normal)
    guide = host.guide(model, observed="x", densities=host.package.NormalDensity())
    args = () if isinstance(objective, host.package.NPE) else (host.array(X),)
    host.fit(model, guide, objective, args=args, num_steps=num_steps, **options)
    return len(runs)


def objectives(host):
    return {"NPE": host.package.NPE(16), "IWAE": host.package.IWAE(4)}


@pytest.mark.parametrize("name", ["NPE", pytest.param("IWAE", marks=pytest.mark.compiles)])
def test_more_compiled_steps_do_not_run_the_model_more_often(host, name):
    """Nor a last report after fewer; in Pyro a recorded step is compared with it once more."""
    is_recorded = host.name == "pyro"
    options = {"compile": True} if is_recorded else {}
    fewer, more = (
        runs_of_training(host, objectives(host)[name], num_steps, **options)
        for num_steps in (50, 130)
    )
    assert more - fewer == int(is_recorded)


@pytest.mark.parametrize("name", ["NPE", "IWAE"])
def test_a_step_that_is_not_compiled_runs_the_model_once(name):
    """And each draw of the held-out loss of a report, here one."""
    require("pyro")
    host = adapter("pyro")
    fewer, more = (runs_of_training(host, objectives(host)[name], num_steps) for num_steps in STEPS)
    assert more - fewer == STEPS[1] - STEPS[0] + 1
