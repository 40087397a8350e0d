"""Every objective against every capability of guides: it trains, or says why it cannot."""

import pytest

from tests.backends import host as adapter
from tests.catalogue import CATALOGUE
from tests.conftest import forget_compiled_code, require
from tests.contract.test_shapes import Case, train

# Some objectives warn of what untrained guides and models without trained scales are bound to have.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

OBJECTIVES = {
    "NPE": lambda package: package.NPE(4),
    "FisherRegularized": lambda package: package.FisherRegularized(package.NPE(4), 0.01),
    "MMDRegularizer": lambda package: package.MMDRegularizer(package.NPE(4)),
    "IWAE": lambda package: package.IWAE(3),
    "RWS": lambda package: package.RWS(3, num_simulations=2),
    "WakeSleep": lambda package: package.WakeSleep(num_simulations=2),
    "VIS": lambda package: package.VIS(3),
    "SelfConsistency": lambda package: package.SelfConsistency(3),
    "TrajectoryBalance": lambda package: package.TrajectoryBalance(3),
    "WeightedELBO": lambda package: package.WeightedELBO(2, kl_weight=0.5, free_bits=0.01),
    "DataEmphasizedELBO": lambda package: package.DataEmphasizedELBO(2.0),
    "InfoELBO": lambda package: package.InfoELBO(0.0, 10.0),
    "DIPELBO": lambda package: package.DIPELBO(1.0, 1.0, variant="i", num_particles=2),
    "VIBLoss": lambda package: package.VIBLoss(0.5),
    "Mixed": lambda package: package.Mixed({package.NPE(2): 0.5, package.IWAE(2): 0.5}),
}
OF_SIMULATIONS = ("NPE", "FisherRegularized", "MMDRegularizer")
# What guides can do, by a model in `tests/shapes.py` that needs it.
CAPABILITIES = {
    "latents above rows": "conjugate_normal",
    "sites that depend on each other": "location_chain",
    "supports": "wide_supports",
    "latents of rows": "local_level_of_rows",
    "latents above and of rows": "hierarchical_normal",
    "inputs": "line_through",
    "nested plates": "nested_groups",
    "index vectors": "grouped_normal",
    "crossed plates": "crossed_effects",
    "missing values": "rows_behind_a_mask",
    "discrete latents": "mixture_assignments",
    "series": "panels",
}
REPARAMETERISED = "site 'z': is (discrete|not reparameterised), and"
IN_NO_PLATE = "sites .* are in no plate, and {} compares"
ABOVE_ROWS = (
    "latents above rows",
    "sites that depend on each other",
    "supports",
    "inputs",
    "missing values",
)
BETWEEN_ELEMENTS = {
    **dict.fromkeys(ABOVE_ROWS, IN_NO_PLATE),
    "crossed plates": "site 'a': is in plates .'rows'. and site 'b' in .'columns'.; {} needs all",
    "discrete latents": REPARAMETERISED,
}
FROM_OWN_PRIORS = {
    **dict.fromkeys(CAPABILITIES, "site '.*': is in no plate, and {} is for"),
    **BETWEEN_ELEMENTS,
    "latents of rows": "site 'x_1': its prior depends on .'x_0'., and {}",
}
# Regular expressions of the refusals, by objective and capability; the rest must train.
REFUSALS = {
    "InfoELBO": {name: text.format("InfoELBO") for name, text in FROM_OWN_PRIORS.items()},
    "DIPELBO": {name: text.format("DIPELBO") for name, text in BETWEEN_ELEMENTS.items()},
    "VIBLoss": {
        **dict.fromkeys(CAPABILITIES, "site '.*': the guide reads the labels at it"),
        "discrete latents": "site '.*': (the guide reads the labels at it|is discrete, and)",
    },
    **{
        name: {"discrete latents": REPARAMETERISED}
        for name in ("IWAE", "Mixed", "WeightedELBO", "DataEmphasizedELBO", "FisherRegularized")
    },
}


@pytest.fixture(scope="module")
def case(request):
    capability, backend = request.param
    require(backend)
    yield capability, Case(adapter(backend), CAPABILITIES[capability])
    forget_compiled_code()


CASES = [(capability, backend) for backend in ("numpyro", "pyro") for capability in CAPABILITIES]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[1]}-{case[0]}", indirect=True)
def test_objective_trains_or_says_why_not(case, objective):
    capability, case = case
    loss = OBJECTIVES[objective](case.host.package)
    call = case.kwargs if objective in OF_SIMULATIONS else case.call_with_data(0)
    refusal = REFUSALS.get(objective, {}).get(capability)
    if refusal is None:
        train(case, loss, call)
    else:
        with pytest.raises(ValueError, match=refusal):
            train(case, loss, call)


def test_every_objective_of_the_catalogue_is_here():
    assert set(OBJECTIVES) == {entry.name for entry in CATALOGUE if entry.kind == "objective"}


def test_something_is_refused_and_something_trains_for_each_capability():
    """The table can be wrong in both directions."""
    for capability in CAPABILITIES:
        num_refused = sum(capability in REFUSALS.get(name, {}) for name in OBJECTIVES)
        assert 0 < num_refused < len(OBJECTIVES)
