"""Run by `test_numbers.py` in a process of its own: guides of one package at double precision.

`python -m tests.parity.float64_guides pyro|numpyro FOLDER` writes, for each case, the guide file
if it does not exist (NumPyro does) and the site log densities at fixed values.
"""

import sys
from pathlib import Path

import numpy as np

SIGMA = np.linspace(9.0, 18.0, 8)


def schools(rng, local):
    latents = {
        "mu": 4 + 2 * rng.normal(size=5),
        "tau": np.exp(rng.normal(size=5)),
        local: rng.normal(size=(5, 8)) * (1.0 if local == "z" else 8.0),
    }
    return (SIGMA,), latents, {"y": 10 * rng.normal(size=(5, 8))}


def series(rng):
    return (), {"phi": rng.uniform(-1, 1, size=5)}, {"y": rng.normal(size=(5, 50))}


def panels(rng):
    latents = {"phi": rng.uniform(-1, 1, size=5), "level": rng.normal(size=(5, 3))}
    return (np.array([0.5, -1.0, 2.0]),), latents, {"y": rng.normal(size=(5, 3, 6))}


def blob(rng):
    return (), {"z": rng.normal(size=(5, 2))}, {"y": rng.normal(size=(5, 8, 8))}


def directions(rng):
    axis = rng.normal(size=(5, 4, 3))
    latents = {
        "mean": rng.uniform(-3, 3, size=5),
        "angle": rng.uniform(-3, 3, size=(5, 4)),
        "axis": axis / np.linalg.norm(axis, axis=-1, keepdims=True),
    }
    return (), latents, {"y": rng.normal(size=(5, 4))}


def linear(rng):
    return (), {"z": rng.normal(size=(5, 10))}, {"x": rng.normal(size=(5, 20, 10))}


CASES = {
    "eight_schools_centered": lambda rng: schools(rng, "theta"),
    "eight_schools_noncentered": lambda rng: schools(rng, "z"),
    "linear_gaussian_10": linear,
    "headings": directions,
    "autoregression": series,
    "autoregression_recurrent": series,
    "panels": panels,
    "blob_image": blob,
}
INPUTS = {
    "eight_schools_centered": {"sigma": "schools"},
    "eight_schools_noncentered": {"sigma": "schools"},
    "panels": {"weight": "rows"},
}
EMBEDDINGS = {
    "autoregression": ("SequenceEmbedding", {}),
    "autoregression_recurrent": ("SequenceEmbedding", {"kind": "recurrent"}),
    "panels": ("SequenceEmbedding", {"num_layers": 2}),
    "blob_image": ("ImageEmbedding", {}),
}


def main(backend: str, folder: Path) -> None:
    if backend == "pyro":
        import torch

        torch.set_default_dtype(torch.float64)
    from tests.backends import host as host_of

    host = host_of(backend)
    for name, case in CASES.items():
        args, latents, observations = case(np.random.default_rng(0))
        args = tuple(host.array(value) for value in args)
        model = getattr(host.models, name.removesuffix("_recurrent"))
        path = folder / f"{name}.safetensors"
        if backend == "numpyro":
            options = {"inputs": INPUTS.get(name)}
            if name in EMBEDDINGS:
                kind, settings = EMBEDDINGS[name]
                options["embedding"] = getattr(host.package, kind)(**settings)
            guide = host.guide(model, observed=list(observations), **options)
            host.scrambled(model, guide, *args, scale=0.1).save(path)
        amortized = host.package.AmortizedPosterior.load(path, model)
        found = host.site_log_probs(amortized, args, latents, observations)
        assert all(value.dtype == np.float64 for value in found.values())
        np.savez(folder / f"{name}.{backend}.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
