"""Saving and loading: the same answers from a file, in safetensors and JSON."""

import numpy as np
import pytest


def schools(host, **options):
    model = host.models.eight_schools_centered
    sigma = host.array(np.linspace(9, 18, 8))
    guide = host.guide(model, observed="y", inputs={"sigma": "schools"}, **options)
    return model, guide, sigma


def test_round_trip_of_a_trained_guide(host, tmp_path):
    model, guide, sigma = schools(host)
    amortized = host.fit(model, guide, host.package.NPE(16), args=(sigma,), num_steps=10)
    amortized.save(tmp_path / "guide.safetensors")
    loaded = host.package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
    assert loaded.guide.structure == guide.structure
    np.testing.assert_array_equal(host.standardisation(loaded), host.standardisation(amortized))
    y = host.array(np.linspace(-5, 25, 8))
    before = host.sample(amortized.at(sigma, y=y), 100, seed=3)
    after = host.sample(loaded.at(sigma, y=y), 100, seed=3)
    assert set(before) == set(after)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    np.testing.assert_array_equal(loaded.history.losses, amortized.history.losses)
    assert loaded.history.plate_sizes == {"schools": (8, 8)}


def test_options_of_networks_survive(host, tmp_path):
    package = host.package
    options = {
        "embedding": package.PlateEmbedding(feature_dim=6, hidden_dims=(7,)),
        "densities": {
            "mu": package.NormalDensity(hidden_dims=(5,)),
            "theta": package.SplineFlowDensity(num_bins=4, hidden_dims=(6, 6), bound=4.0),
        },
    }
    model, guide, sigma = schools(host, **options)
    amortized = host.scrambled(model, guide, sigma, scale=0.1)
    amortized.save(tmp_path / "guide.safetensors")
    loaded = package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
    embeddings, densities = loaded.guide.specifications(loaded.guide.structure)
    assert embeddings == {"y": options["embedding"]}
    assert densities["theta"] == options["densities"]["theta"]
    assert densities["tau"] == package.SplineFlowDensity()
    assert {name: w.shape for name, w in host.weights(loaded).items()} == {
        name: w.shape for name, w in host.weights(amortized).items()
    }


def test_chosen_parents_survive(host, tmp_path):
    model = host.models.eight_schools_noncentered
    sigma = host.array(np.linspace(9, 18, 8))
    guide = host.guide(
        model, observed="y", inputs={"sigma": "schools"}, parents={"tau": [], "z": ["tau"]}
    )
    amortized = host.scrambled(model, guide, sigma, scale=0.1)
    assert guide.structure.site("z").parents == ("tau",)
    amortized.save(tmp_path / "guide.safetensors")
    loaded = host.package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
    assert loaded.guide.structure == guide.structure


def test_structure_survives_json(host):
    import json

    for name in ("nested_groups", "wide_supports"):
        structure = host.guide(getattr(host.models, name), observed="y").setup().structure
        text = json.dumps(structure.to_dict())
        assert type(structure).from_dict(json.loads(text)) == structure
        assert structure.differences(structure) == []
        assert all(site.name in str(structure) for site in structure.latents)


def test_a_file_holds_no_pickle(host, tmp_path):
    model, guide, sigma = schools(host)
    host.scrambled(model, guide, sigma).save(tmp_path / "guide.safetensors")
    head = (tmp_path / "guide.safetensors").read_bytes()
    assert head[8:9] == b"{"
    assert b"pickle" not in head


@pytest.mark.compiles
def test_starting_from_trained_weights(host):
    """A second fit goes on from the first one."""
    model = host.models.conjugate_normal
    guide = host.guide(model, observed="x", densities=host.package.NormalDensity())
    first = host.fit(model, guide, host.package.NPE(64), num_steps=300, learning_rate=5e-3)
    options = {"params": first.params} if host.name == "numpyro" else {}
    second = host.fit(
        model, guide, host.package.NPE(64), num_steps=5, learning_rate=1e-5, **options
    )
    assert second.history.losses.mean() < first.history.losses[:5].mean() - 0.3
    assert second.history.losses.mean() == pytest.approx(first.history.losses[-20:].mean(), abs=0.3)
