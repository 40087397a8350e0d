"""Every mistake that a user can make is met by an error that says what to do."""

import json
import warnings
from importlib import import_module

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.backends import num_distinct
from tests.problems import PROBLEMS


def refusal(host, name, *args, observed="y", **options):
    """The message with which a guide for this model is refused."""
    model = getattr(host.models, name)
    with pytest.raises(ValueError, match="cannot be built for this model") as caught:
        host.guide(model, observed=observed, **options).setup(*args)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("conjugate_normal", {"observed": ()}, "observed: expected at least one site name"),
        ("conjugate_normal", {"observed": "w"}, "observed site 'w': the model has no such site"),
        ("no_latent", {}, "the model has no latent site"),
        ("improper", {}, "site 'z': its prior is improper"),
        ("improper_rows", {}, "site 'z': its prior is improper"),
        ("multinomial_counts", {}, "site 'k': a guide cannot yet map its support"),
        ("uncovered_batch", {}, r"site 'z': batch shape (3,) is not covered by plates"),
        ("uncovered_single", {}, r"site 'z': batch shape (1,) is not covered by plates"),
        ("uncovered_data", {}, r"site 'y': batch shape (3,) is not covered by plates"),
        ("moving_support", {}, "site 'u': its support changes with other latents"),
        ("elementwise_bounds", {}, "site 'u': its bounds differ between plate elements"),
        ("summed_plate", {"observed": ("y", "total")}, "outside the plate. Write 'u' as one"),
        ("summed_inside", {}, "depend on each other: changing the first one changes site 'y'"),
        ("hidden_constant", {}, "plate 'rows': its elements are not exchangeable at site 'y'"),
        (
            "separate_margins",
            {"observed": ("ya", "yb")},
            "site 'a': depends on ['b'], whose plates are not among its own ['left']",
        ),
        (
            "pairs_without_data",
            {"observed": ("ya", "yb")},
            "site 'u': no observed site has features on exactly its plates ['left', 'right']",
        ),
        ("masked", {}, "site 'y': is masked, and the guide would not see by what"),
        ("masked_by_handler", {}, "site 'y': is masked, and the guide would not see by what"),
        ("masked_whole", {"observed": "x"}, "site 'z': masked latents are not supported"),
        ("masked_whole", {"observed": "x"}, "site 'x': is masked, and the guide"),
        ("masked_inside_event", {}, "site 'y': is masked, and the guide would not see by what"),
        ("scaled", {}, "site 'y': scaled sites are not supported"),
        ("one_name_for_two", {}, "site 'z': 2 sites of the model have this name"),
        ("one_name_for_two_observed", {}, "site 'y': 2 sites of the model have this name"),
        (
            "conjugate_normal",
            {"observed": "x", "inputs": {"w": None}},
            "input 'w': the model has no such argument; it has ['x']",
        ),
        (
            "conjugate_normal",
            {"observed": "x", "sizes": {"w": "rows"}},
            "sizes 'w': the model has no such argument; it has ['x']",
        ),
        (
            "hierarchical_normal",
            {"parents": {"theta": ["w"]}},
            "parents of site 'theta': 'w' is not an earlier latent",
        ),
    ],
)
def test_models_without_a_guide(host, name, options, expected):
    assert expected in refusal(host, name, **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "argument 'sigma': changes sites ['y'] but is not declared"),
        ({"inputs": {"sigma": "rows"}}, "input 'sigma': no site is in a plate called 'rows'"),
        ({"inputs": {"sigma": ("schools", "rows")}}, "no site is in a plate called 'rows'"),
    ],
)
def test_arguments_that_the_guide_would_not_see(host, options, expected):
    sigma = host.array(np.linspace(9, 18, 8))
    assert expected in refusal(host, "eight_schools_noncentered", sigma, **options)


def test_input_of_another_shape_or_type(host):
    message = refusal(host, "hierarchical_normal", None, 8, inputs={"num_groups": None})
    assert "input 'num_groups': expected an array, got int" in message
    features = host.array(np.random.default_rng(0).normal(size=(7, 3)))
    message = refusal(host, "linear_regression", features, inputs={"features": "coefficients"})
    assert "input 'features': expected leading shape (3,)" in message
    square = {"inputs": {"features": "coefficients"}}
    message = refusal(host, "linear_regression", features[:3], **square)
    assert "input 'features': no observed site carries its plates ['coefficients']" in message


def test_input_left_at_a_default_that_is_no_array(host):
    message = refusal(host, "hierarchical_normal", inputs={"y": "groups"})
    assert "input 'y': expected an array, got NoneType; pass one in this call" in message


def test_size_of_an_unknown_plate(host):
    message = refusal(host, "hierarchical_normal", None, 8, sizes={"num_groups": "rows"})
    assert "sizes 'num_groups': no site is in a plate called 'rows'" in message


def test_data_at_a_site_that_is_not_named(host):
    model = host.models.two_observed
    one = host.array(np.array(1.0))
    with pytest.raises(ValueError, match="site 'b': carries data in this call but is not named"):
        host.guide(model, observed="a").setup(one, one)


def test_teacher_forcing_is_refused(host):
    """Trap 7: the model simulates from the real data."""
    y = host.array(np.array([0.5, 1.0, -0.3, 2.0]))
    message = refusal(host, "random_walk", y)
    assert "argument 'y': the model reads this data while it simulates" in message


def test_every_problem_is_reported_at_once(host):
    message = refusal(host, "improper", observed=("y", "w"))
    assert "observed site 'w'" in message
    assert "site 'z': its prior is improper" in message


def test_factor_site_under_npe(host):
    model = host.models.with_factor
    with pytest.raises(ValueError, match="factor site 'push': NPE learns from simulations"):
        host.fit(model, host.guide(model, observed="y"), host.package.NPE(8), num_steps=1)


def test_structure_before_set_up(host):
    guide = host.guide(host.models.conjugate_normal, observed="x")
    with pytest.raises(RuntimeError, match="not set up; call guide.setup"):
        _ = guide.structure


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"embedding": 3}, TypeError, "embedding: expected instances of Embedding"),
        ({"densities": {"z": "flow"}}, TypeError, "densities: expected instances of Density"),
    ],
)
def test_specifications_of_another_kind(host, options, kind, message):
    with pytest.raises(kind, match=message):
        host.guide(host.models.conjugate_normal, observed="x", **options)


@pytest.mark.parametrize("argument", ["embedding", "densities"])
def test_specification_of_an_unknown_site(host, argument):
    spec = {"embedding": "PlateEmbedding", "densities": "NormalDensity"}[argument]
    options = {argument: {"w": getattr(host.package, spec)()}}
    guide = host.guide(host.models.conjugate_normal, observed="x", **options)
    with pytest.raises(ValueError, match=f"{argument}: 'w' is not one of the sites"):
        guide.setup()


@pytest.fixture
def amortized(host):
    model = host.models.hierarchical_normal
    guide = host.guide(model, observed="y", sizes={"num_groups": "groups"})
    return host.untrained(model, guide, num_groups=8)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros((8, 2)), r"observed site 'y': expected shape \(groups\), got \(8, 2\)"),
        (np.array(1.0), r"observed site 'y': expected shape \(groups\), got \(\)"),
        (np.array([0.0] * 7 + [np.nan]), "observed site 'y': 1 of 8 values are NaN or infinite"),
        (np.array([0.0] * 6 + [np.inf] * 2), "observed site 'y': 2 of 8 values are NaN"),
        (None, "observed site 'y': no data in this call"),
    ],
)
def test_data_that_do_not_fit(host, amortized, y, message):
    with pytest.raises(ValueError, match=message):
        amortized.guide.find_observations((), {}, {"y": y})


def test_data_of_another_trailing_shape_in_the_models_own_call(host, amortized):
    with pytest.raises(ValueError, match="observed site 'y'"):
        amortized.at(y=host.array(np.zeros((8, 2, 2))), num_groups=8)


def test_no_data_in_the_models_own_call(host, amortized):
    with pytest.raises(ValueError, match="observed site 'y': no data in this call"):
        amortized.at()


def test_data_of_another_type(host, amortized):
    for value in (np.array(["a"] * 8), np.zeros(8, complex)):
        with pytest.raises(TypeError, match="observed site 'y': expected real numbers, got"):
            amortized.guide.find_observations((), {}, {"y": value})


def test_data_at_an_unknown_site(host, amortized):
    with pytest.raises(ValueError, match="observations: 'w' is not one of the observed sites"):
        amortized.at_each(observations={"w": np.zeros((2, 8))})


def test_data_that_are_not_whole_at_a_discrete_site(host):
    model = host.models.beta_binomial
    amortized = host.untrained(model, host.guide(model, observed="k"))
    with pytest.raises(ValueError, match="observed site 'k': its support is discrete"):
        amortized.at(k=host.array(np.array(2.5)))


def test_an_error_of_the_model_itself_passes_through(host):
    model = host.models.with_own_check
    amortized = host.untrained(model, host.guide(model, observed="y"))
    with pytest.raises(ValueError, match="the model's own complaint"):
        amortized.at(y=host.array(np.array(-1.0)))


def test_observed_sites_that_disagree_on_a_size(host):
    guide = host.guide(host.models.paired_rows, observed=("a", "b")).setup()
    data = {"a": np.zeros(3), "b": np.zeros(4)}
    with pytest.raises(ValueError, match="plate 'rows': site 'b' has 4 elements along it"):
        guide.find_observations((), {}, data)


def test_data_that_disagree_with_the_size_of_a_plate(host, amortized):
    """A plate of the guide with another number of rows would change what the host scores."""
    y = host.array(np.zeros(6))
    message = "plate 'groups': has 8 elements in this call of the model, but the data have 6"
    with pytest.raises(ValueError, match=message):
        amortized.at(y=y)
    with pytest.raises(ValueError, match=message):
        amortized.at_each(observations={"y": np.zeros((3, 6), "float32")})
    with pytest.raises(ValueError, match=message):
        host.fit(amortized.guide.model, amortized.guide, host.trace_elbo(), args=(y,), num_steps=1)
    model = host.models.conjugate_normal
    fixed = host.untrained(model, host.guide(model, observed="x"))
    with pytest.raises(ValueError, match="plate 'rows': has 20 elements in this call"):
        fixed.at(x=y)


@pytest.mark.parametrize("shape", [(5,), (2, 6)])
def test_a_mask_of_another_shape(host, shape):
    model, mask = host.models.six_rows_behind_a_mask, host.array(np.ones(shape, bool))
    options = {"observed": "y", "missing": {"is_there": "y"}}
    with pytest.raises(ValueError, match="'is_there': expected|'y': batch shape"):
        host.guide(model, **options).setup(mask)
    amortized = host.untrained(model, host.guide(model, **options), host.array(np.ones(6, bool)))
    y = host.array(np.zeros(6))
    with pytest.raises(ValueError, match="missing 'is_there': expected|site 'y': expected shape"):
        amortized.at(mask, y=y)


def test_a_mask_beside_data_of_another_size(host):
    model = host.models.rows_behind_a_mask
    guide = host.guide(model, observed="y", missing={"is_there": "y"})
    mask, y = np.ones(5, bool), np.zeros(6)
    amortized = host.untrained(model, guide, host.array(mask))
    with pytest.raises(ValueError, match="plate 'rows': has 5 elements in this call"):
        amortized.at(host.array(mask), y=host.array(y))
    check = host.module("missing").check_masks
    with pytest.raises(
        ValueError, match=r"missing 'is_there': expected shape \(6,\), that of site"
    ):
        check(guide.structure, {"is_there": host.array(mask)}, {"y": host.array(y)}, 0)


def test_plain_argument_that_changes(host):
    model = host.models.hierarchical_normal
    guide = host.guide(model, observed="y").setup(num_groups=8)
    with pytest.raises(ValueError, match="argument 'num_groups': expected 8"):
        guide.find_observations((), {"num_groups": 5}, {"y": np.zeros(5)})


def test_plain_argument_left_at_its_default_is_fixed_too(host):
    guide = host.guide(host.models.hierarchical_normal, observed="y").setup()
    with pytest.raises(ValueError, match="argument 'num_groups': expected 8"):
        guide.find_observations((), {"num_groups": 5}, {"y": np.zeros(5)})
    data = {"y": np.zeros(8)}
    assert guide.find_observations((), {"num_groups": 8}, data)["y"].shape == (8,)


def test_nan_in_five_percent_of_the_simulations(host):
    model = host.models.sometimes_nan
    guide = host.guide(model, observed="y")
    with pytest.raises(ValueError, match=r"not finite in runs \(of \d+\) at sites \{'y': \d+\}"):
        host.fit(model, guide, host.package.NPE(32), num_steps=2)
    objective = host.package.NPE(32, nonfinite="drop")
    amortized = host.fit(model, guide, objective, num_steps=40)
    history = amortized.history
    assert 0.01 < history.num_nonfinite / history.num_simulations < 0.12
    assert np.all(np.isfinite(history.losses))
    assert "simulations were not finite and were left out" in str(history)


def test_nothing_finite_at_all(host):
    with pytest.raises(ValueError, match="no simulation is finite; check the model's priors"):
        host.guide(host.models.always_nan, observed="y").setup()


def test_sampling_before_training_works_with_a_warning(host):
    model = host.models.conjugate_normal
    untrained = host.package.AmortizedPosterior(model, host.guide(model, observed="x"))
    with pytest.warns(UserWarning, match="the guide is not trained"):
        posterior = untrained.at(x=host.array(np.zeros(20)))
    assert num_distinct(host.sample(posterior, 200)["z"]) > 0.99


@pytest.mark.parametrize("num", [0, -3])
def test_numbers_below_one(host, amortized, num):
    posterior = amortized.at(y=host.array(np.zeros(8)))
    model = host.models.conjugate_normal
    with pytest.raises(ValueError, match=f"num_samples: expected at least 1, got {num}"):
        posterior.sample(num)
    with pytest.raises(ValueError, match=f"num_samples: expected at least 1, got {num}"):
        posterior.importance_sample(num)
    with pytest.raises(ValueError, match=f"num_local_samples: expected at least 1, got {num}"):
        posterior.importance_sample(10, num_local_samples=num)
    with pytest.raises(
        ValueError, match="defensive_fraction: expected at least 0 and below 1, got"
    ):
        posterior.importance_sample(10, defensive_fraction=1 - num)
    with pytest.raises(ValueError, match=f"num_simulations: expected at least 1, got {num}"):
        host.package.simulate(model, num)
    with pytest.raises(ValueError, match=f"num_simulations: expected at least 1, got {num}"):
        host.package.NPE(num)
    with pytest.raises(ValueError, match=f"num_steps: expected at least 1, got {num}"):
        host.fit(model, host.guide(model, observed="x"), host.package.NPE(), num_steps=num)


def test_options_of_npe(host):
    bank = host.simulate(host.models.conjugate_normal, 50)
    with pytest.raises(ValueError, match="simulations: a bank belongs to one set of model arg"):
        host.package.NPE(model_args=lambda *_: (), simulations=bank)
    with pytest.raises(ValueError, match="nonfinite: expected 'raise' or 'drop', got 'ignore'"):
        host.package.NPE(nonfinite="ignore")
    with pytest.raises(ValueError, match="simulations: expected at least 20 to hold some out, got"):
        host.package.NPE(simulations=host.simulate(host.models.conjugate_normal, 19))


def test_npe_with_a_bank_that_is_not_finite(host):
    bank = host.simulate(host.models.sometimes_nan, 400)
    assert bank.nonfinite
    with pytest.raises(ValueError, match="simulations are not finite"):
        host.package.NPE(simulations=bank)
    assert host.package.NPE(simulations=bank, nonfinite="drop").simulations is bank


def test_sampler_of_arguments_of_another_type(host):
    model = host.models.conjugate_normal
    objective = host.package.NPE(8, model_args=lambda *_: 3.0)
    with pytest.raises(TypeError, match="model_args: expected a tuple of positional or a dict"):
        host.fit(model, host.guide(model, observed="x"), objective, num_steps=1)


def test_arguments_from_two_places(host):
    model = host.models.hierarchical_normal
    guide = host.guide(model, observed="y", sizes={"num_groups": "groups"})
    with pytest.raises(ValueError, match=r"model_args: NPE draws arguments itself; use NPE\(model"):
        host.fit(model, guide, host.package.NPE(8), model_args=lambda *_: (None, 3))
    with pytest.raises(ValueError, match="args, kwargs: model_args draws the arguments; leave th"):
        host.fit(model, guide, host.trace_elbo(), args=(None, 3), model_args=lambda *_: (None, 3))


def test_arguments_of_an_objective_without_a_sampler(host):
    keys = (host.key(0),) if host.name == "numpyro" else ()
    with pytest.raises(ValueError, match="model_args: this objective has no sampler of arguments"):
        host.package.NPE(8).draw_arguments(*keys)


def test_guide_that_cannot_score(host):
    check = host.module("objectives.npe").check_guide
    with pytest.raises(TypeError, match="NPE needs a guide that scores given latents"):
        check(lambda: None)


def test_guide_of_many_data_sets_is_no_guide_of_the_host(host, amortized):
    many = amortized.at_each(observations={"y": np.zeros((2, 8), "float32")})
    with pytest.raises(ValueError, match="guide: a host's guide has one data set"):
        _ = many.guide


@pytest.mark.compiles
def test_training_that_diverges_stops(host):
    model = host.models.hierarchical_normal
    guide = host.guide(model, observed="y")
    message = r"step \d+: the (gradient of the )?loss is not finite.*a lower learning_rate helps"
    with pytest.raises(FloatingPointError, match=message):
        host.fit(model, guide, host.package.NPE(16), num_steps=60, learning_rate=1e12)


ROWS = PROBLEMS["conjugate_normal"].num_rows
BOUNDS = {
    "ELBO": lambda host: host.infer.Trace_ELBO(),
    "IWAE": lambda host: host.package.IWAE(2),
}


@pytest.mark.compiles
def test_loss_that_is_not_finite_names_the_step_and_the_site(host):
    """Densities overflow at such data."""
    model, data = host.models.conjugate_normal, {"x": host.array(np.full(ROWS, 1e25))}
    guide = host.guide(model, observed="x")
    message = r"step 1: the loss is not finite, at sites \['x'\]"
    with pytest.raises(FloatingPointError, match=message):
        host.fit(model, guide, BOUNDS["ELBO"](host), kwargs=data, num_steps=20)


@pytest.mark.compiles
@pytest.mark.parametrize("name", BOUNDS)
def test_gradient_that_is_not_finite_names_the_step_and_the_site(host, name):
    """The loss is finite: without a look at the gradient every parameter would become NaN."""
    model, data = host.models.root_at_zero, {"x": host.array(np.zeros(ROWS))}
    guide = host.guide(model, observed="x")
    message = r"step 1: the gradient of the loss is not finite, at sites \['x'\]"
    with pytest.raises(FloatingPointError, match=message):
        host.fit(model, guide, BOUNDS[name](host), kwargs=data, num_steps=20)


@pytest.mark.compiles
def test_refining_stops_at_a_gradient_that_is_not_finite(host):
    model, data = host.models.root_at_zero, {"x": host.array(np.zeros(ROWS))}
    guide = host.guide(model, observed="x")
    amortized = host.fit(model, guide, host.package.NPE(8), num_steps=2)
    before = host.sample(amortized.at(**data), 3)["z"]
    with pytest.raises(
        FloatingPointError, match="step 1: the loss is .* and the norm of its gradient"
    ):
        host.package.refine(amortized, BOUNDS["IWAE"](host), kwargs=data, num_steps=3)
    np.testing.assert_array_equal(host.sample(amortized.at(**data), 3)["z"], before)


def test_saving_before_any_call(host, tmp_path):
    model = host.models.conjugate_normal
    amortized = host.package.AmortizedPosterior(model, host.guide(model, observed="x"))
    with pytest.raises(RuntimeError, match=r"AmortizedGuide: .*call guide.setup\(\*args"):
        amortized.save(tmp_path / "guide.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def saved(host, amortized, tmp_path):
    path = tmp_path / "guide.safetensors"
    amortized.save(path)
    return path


def rewrite(path, change):
    """Change the metadata of a saved file."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    save_file(tensors, path, metadata=metadata)


def test_file_of_another_model(host, saved):
    load = host.package.AmortizedPosterior.load
    with pytest.raises(ValueError, match="belongs to another model than the given one"):
        load(saved, host.models.nested_groups)
    with pytest.raises(ValueError, match="belongs to another model than the given one"):
        load(saved, host.models.no_latent)


def test_file_of_a_model_with_other_sites_of_the_same_names(host, tmp_path):
    model, path = host.models.conjugate_normal, tmp_path / "guide.safetensors"
    host.untrained(model, host.guide(model, observed="x")).save(path)
    with pytest.raises(ValueError, match=r"(?s)belongs to another model.*latents 'z': expected"):
        host.package.AmortizedPosterior.load(path, host.models.linear_gaussian_2)


def test_file_of_a_newer_format(host, saved):
    def newer(metadata, tensors):
        metadata["header"] = json.dumps(json.loads(metadata["header"]) | {"version": 99})

    rewrite(saved, newer)
    with pytest.raises(ValueError, match="written in format 99, this version reads up to"):
        host.package.AmortizedPosterior.load(saved, host.models.hierarchical_normal)


def test_file_of_something_else(host, saved):
    rewrite(saved, lambda metadata, tensors: metadata.clear())
    with pytest.raises(ValueError, match="expected a file written by AmortizedPosterior.save"):
        host.package.AmortizedPosterior.load(saved, host.models.hierarchical_normal)


def test_file_with_networks_of_other_sizes(host, saved):
    other = host.package.PlateEmbedding(feature_dim=5)
    with pytest.raises(ValueError, match="the weights do not fit the networks"):
        host.package.AmortizedPosterior.load(
            saved, host.models.hierarchical_normal, embedding=other
        )


def test_file_with_a_density_of_another_package(host, saved):
    def rename(metadata, tensors):
        header = json.loads(metadata["header"])
        header["densities"]["mu"]["type"] = "OurOwnDensity"
        metadata["header"] = json.dumps(header)

    rewrite(saved, rename)
    with pytest.raises(ValueError, match="was trained with OurOwnDensity.*pass densities="):
        host.package.AmortizedPosterior.load(saved, host.models.hierarchical_normal)


def test_a_conditional_site_that_changes_its_family(host):
    model = host.models.flaky_family
    guide = host.guide(model, observed="y").setup(None)
    score = host.module("simulate").conditional_location_scale
    assert guide.structure.site("u").is_conditional
    with pytest.raises(ValueError, match="site 'u': expected the location-scale distribution"):
        score(model, ("other",), {}, "u", {"mu": host.array(np.zeros(2))}, 1)
    posterior = host.untrained(model, guide, None).at("other", y=host.array(np.zeros(3)))
    with pytest.raises(ValueError, match="site 'u': expected the location-scale distribution"):
        host.sample(posterior, 3)


def test_model_that_cannot_be_vectorised_falls_back_to_the_loop(host):
    model = host.models.python_branch
    with pytest.warns(UserWarning, match="so each simulation is one"):
        bank = host.simulate(model, 20)
    assert num_distinct(bank["z"]) == 1.0
    with pytest.raises(Exception):  # noqa: B017, PT011 (the host's own error)
        host.simulate(model, 20, method="vectorized")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(host.simulate(model, 5, method="loop")) == 5


def test_half_precision(host):
    """NumPyro's own draws are of single precision, whatever the parameters are."""
    module, dist = import_module(host.name), import_module(f"{host.name}.distributions")
    half = host.array(np.zeros(2))
    half = half.half() if host.name == "pyro" else half.astype("float16")

    def model(y=None):
        z = module.sample("z", dist.Normal(half, half + 1).to_event(1))
        module.sample("y", dist.Normal(z, half + 1).to_event(1), obs=y)

    guide = host.guide(model, observed="y")
    if host.name == "numpyro":
        weights = guide.setup().init_params()["amortized$params"].values()
        assert {str(weight.dtype) for weight in weights} == {"float32"}
        assert host.simulate(model, 20)["z"].dtype == np.float32
        return
    with pytest.raises(ValueError, match="site 'z': its values are float16. .*float32 or float64"):
        guide.setup()
