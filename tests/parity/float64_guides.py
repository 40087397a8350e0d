"""Run by `test_numbers.py` in a process of its own: guides of one package at double precision.

`python -m tests.parity.float64_guides pyro|numpyro FOLDER CASE ...` writes, for each case, the
guide file if it does not exist (NumPyro does) and the site log densities at fixed values.
"""

import sys
from pathlib import Path

import numpy as np

from tests.problems import PROBLEMS

SIGMA = np.linspace(9.0, 18.0, 8)

# Each case gives the model's arguments, the guide's options, latents and data.


def schools(rng, local):
    latents = {
        "mu": 4 + 2 * rng.normal(size=5),
        "tau": np.exp(rng.normal(size=5)),
        local: rng.normal(size=(5, 8)) * (1.0 if local == "z" else 8.0),
    }
    data = {"y": 10 * rng.normal(size=(5, 8))}
    return (SIGMA,), {"inputs": {"sigma": "schools"}}, latents, data


def linear(rng, **options):
    return (), options, {"z": rng.normal(size=(5, 2))}, {"x": rng.normal(size=(5, 20, 2))}


def crossed(rng):
    return (), {}, *PROBLEMS["crossed_effects"].sample_joint(rng, 5)


def grouped(rng):
    problem = PROBLEMS["grouped_normal"]
    options = {"groups": {"group": ("groups", "rows")}, "sizes": {"num_groups": "groups"}}
    return (problem.group, problem.num_groups), options, *problem.sample_joint(rng, 5)


def attention():
    return {"embedding": ("PlateEmbedding", {"pooling": "attention", "num_inducing": 5})}


def holes(rng):
    y = np.where(rng.uniform(size=(5, 6)) < 0.3, np.nan, rng.normal(size=(5, 6)))
    return (), {"missing": "y"}, {"z": rng.normal(size=5)}, {"y": y}


def with_options(case, more):
    args, options, latents, data = case
    return args, options | more, latents, data


def directions(rng):
    axis = rng.normal(size=(5, 4, 3))
    latents = {
        "mean": rng.uniform(-3, 3, size=5),
        "angle": rng.uniform(-3, 3, size=(5, 4)),
        "axis": axis / np.linalg.norm(axis, axis=-1, keepdims=True),
    }
    return (), {}, latents, {"y": rng.normal(size=(5, 4))}


def families(rng):
    """A family of densities for each site, on four supports."""
    simplex = rng.dirichlet(np.ones(4), size=5)
    correlation = np.broadcast_to(np.eye(3), (5, 3, 3)).copy()
    correlation[:, 1, 0] = rng.uniform(-0.8, 0.8, size=5)
    correlation[:, 1, 1] = np.sqrt(1 - correlation[:, 1, 0] ** 2)
    latents = {
        "simplex": simplex,
        "ordered": np.sort(rng.normal(size=(5, 3)), axis=-1),
        "corr": correlation,
        "box": rng.uniform(-0.9, 0.9, size=(5, 2)),
    }
    densities = {
        "simplex": ("MixtureDensity", {"num_components": 3}),
        "ordered": ("LowRankNormalDensity", {"rank": 2}),
        "corr": ("MultivariateNormalDensity", {}),
        "box": ("StudentTDensity", {}),
    }
    return (), {"densities": densities}, latents, {"y": rng.normal(size=(5, 3))}


def series(rng, **settings):
    options = {"embedding": ("SequenceEmbedding", settings)}
    return (), options, {"phi": rng.uniform(-1, 1, size=5)}, {"y": rng.normal(size=(5, 50))}


def slopes(rng, name="SequenceEmbedding", **settings):
    problem = PROBLEMS["slopes"]
    latents, data = problem.sample_joint(rng, 5)
    there = rng.uniform(size=problem.times.shape) < 0.8
    options = {
        "inputs": {"times": "rows"},
        "missing": {"is_there": "y"},
        "embedding": (name, {"times": "times"} | settings),
    }
    return (problem.times, there), options, latents, data


def panels(rng):
    options = {
        "inputs": {"weight": "rows"},
        "embedding": ("SequenceEmbedding", {"num_layers": 2}),
    }
    latents = {"phi": rng.uniform(-1, 1, size=5), "level": rng.normal(size=(5, 3))}
    return (np.array([0.5, -1.0, 2.0]),), options, latents, {"y": rng.normal(size=(5, 3, 6))}


def blob(rng, kind="ImageEmbedding", **settings):
    options = {"embedding": (kind, settings)}
    return (), options, {"z": rng.normal(size=(5, 2))}, {"y": rng.normal(size=(5, 8, 8))}


def holes_in_images(rng):
    there = rng.uniform(size=(2, 4, 4)) < 0.7
    options = {"missing": {"is_there": "y"}, "embedding": ("ImageEmbedding", {})}
    return (there,), options, {"z": rng.normal(size=5)}, {"y": rng.normal(size=(5, 2, 4, 4))}


def discrete(rng):
    latents = {
        "flag": rng.integers(0, 2, size=5),
        "label": rng.integers(0, 3, size=5),
        "few": rng.integers(0, 6, size=5),
        "many": rng.integers(250, 350, size=5),
        "count": rng.integers(0, 9, size=5),
        "waits": rng.integers(0, 9, size=5),
        "pair": rng.integers(0, 9, size=(5, 2)),
        "own": rng.integers(0, 9, size=(5, 4)),
    }
    return (), {}, latents, {"y": 15 + 4 * rng.normal(size=(5, 4))}


def outliers(rng):
    latents = {"k": rng.integers(0, 5, size=(5, 3)), "mean": rng.normal(size=(5, 3))}
    options = {"densities": {"k": ("PointerDensity", {"into": "rows"})}}
    return (), options, latents, {"y": rng.normal(size=(5, 3, 5))}


def switches(rng):
    return (), {}, {"b": rng.integers(0, 2, size=(5, 3))}, {"y": rng.normal(size=(5, 2))}


TRANSFORMER = {"kind": "transformer", "num_channels": 20}
CASES = {
    "eight_schools_centered": lambda rng: schools(rng, "theta"),
    "eight_schools_noncentered": lambda rng: schools(rng, "z"),
    "linear_gaussian_2": linear,
    "linear_gaussian_2__autoregressive": lambda rng: linear(
        rng, densities=("SplineFlowDensity", {"kind": "autoregressive", "num_transforms": 2})
    ),
    "every_discrete_support": discrete,
    "switches_in_a_plate": switches,
    "outliers_of_sets": outliers,
    "crossed_effects": crossed,
    "grouped_normal": grouped,
    "rows_of_any_number": holes,
    "grouped_normal__attention": lambda rng: with_options(grouped(rng), attention()),
    "headings": directions,
    "autoregression": series,
    "autoregression__recurrent": lambda rng: series(rng, kind="recurrent"),
    "slopes__transformer": lambda rng: slopes(rng, **TRANSFORMER),
    "panels": panels,
    "blob_image": blob,
    "blob_image__vector_tanh": lambda rng: blob(rng, "MLPEmbedding", activation="gelu_tanh"),
    "blob_image__perceiver": lambda rng: blob(rng, "PerceiverEmbedding", positions="grid"),
    "image_with_holes": holes_in_images,
    "wide_supports": families,
}


def built(host, spec):
    """A specification, or one for each site, from names and settings."""
    if isinstance(spec, dict):
        return {site: built(host, own) for site, own in spec.items()}
    kind, settings = spec
    return getattr(host.package, kind)(**settings)


def main(backend: str, folder: Path, names: list[str]) -> None:
    if backend == "pyro":
        import torch

        torch.set_default_dtype(torch.float64)
    from tests.backends import host as host_of

    host = host_of(backend)
    for name in names:
        args, options, latents, observations = CASES[name](np.random.default_rng(0))
        args = tuple(
            host.array(value) if isinstance(value, np.ndarray) else value for value in args
        )
        model = getattr(host.models, name.split("__")[0])
        path = folder / f"{name}.safetensors"
        if backend == "numpyro":
            for slot in {"embedding", "densities"} & set(options):
                options[slot] = built(host, options[slot])
            guide = host.guide(model, observed=list(observations), **options)
            scale = 0.05 if name == "crossed_effects" else 0.1  # its networks are deep
            host.scrambled(model, guide, *args, scale=scale).save(path)
        amortized = host.package.AmortizedPosterior.load(path, model)
        found = host.site_log_probs(amortized, args, latents, observations)
        assert all(value.dtype == np.float64 for value in found.values())
        np.savez(folder / f"{name}.{backend}.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
