"""Saving and loading: one safetensors file with a JSON header, never pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from numpyro_amortize import densities as density_families
from numpyro_amortize import embeddings as embedding_families
from numpyro_amortize.guides import AmortizedGuide
from numpyro_amortize.guides.weights import PARAMS, STANDARDISATION
from numpyro_amortize.history import TrainingHistory
from numpyro_amortize.reading import read_structure
from numpyro_amortize.standardisation import Standardisation
from numpyro_amortize.structure import ModelStructure
from numpyro_amortize.tracing import run_model

FORMAT = "amortize-guide"
FORMAT_VERSION = 2  # 1 holds one guide, and is still written for one; 2 holds an ensemble


def save_guides(
    path: str | PathLike[str],
    members: Sequence[tuple[AmortizedGuide, Mapping[str, Any], TrainingHistory | None]],
    weights: Sequence[float] | None,
) -> None:
    """Write one guide or those of an ensemble to a file that both packages read.

    Args:
        path: The file.
        members: The guide, set up, its parameters, and what happened in its training; or those of
            an ensemble.
        weights: Their weights, None for one guide by itself.
    """
    headers = []
    joined: dict[str, np.ndarray] = {}
    for number, member in enumerate(members):
        header, tensors = _describe(*member)
        if weights is None:
            _write(path, {"version": 1, **header}, tensors)
            return
        headers.append(header)
        joined |= {f"{number}.{name}": value for name, value in tensors.items()}
    _write(path, {"version": 2, "weights": list(weights or ()), "members": headers}, joined)


def _describe(
    guide: AmortizedGuide, params: Mapping[str, Any], history: TrainingHistory | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a file says of one guide, and its arrays by name."""
    constants = np.asarray(params[STANDARDISATION])
    tensors = {"standardisation": constants[1:] / constants[0]}
    for name, value in params[PARAMS].items():
        tensors[f"guide.{name}"] = np.asarray(value)
    for name in params.keys() - {PARAMS, STANDARDISATION}:
        tensors |= _leaves(name, params[name])
    call = _encode_call(guide.setup_call, tensors)
    embeddings, densities = guide.specifications(guide.structure)
    header = {
        "structure": guide.structure.to_dict(),
        "observed": guide.alternatives or guide.observed,
        "inputs": {
            name: list(plates) if isinstance(plates, tuple | list) else plates
            for name, plates in guide.inputs.items()
        },
        "groups": guide.groups,
        "sizes": guide.sizes,
        "missing": guide.missing,
        "embedding": {name: _encode_spec(spec) for name, spec in embeddings.items()},
        "densities": {name: _encode_spec(spec) for name, spec in densities.items()},
        "call": call,
        "history": history and history.to_dict(),
    }
    return header, tensors


def _write(
    path: str | PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(contiguous, path, metadata={"format": FORMAT, "header": json.dumps(header)})


def load_guides(
    path: str | PathLike[str], model: Callable[..., Any], *, embedding: Any, densities: Any
) -> tuple[list[tuple[AmortizedGuide, dict[str, Any], TrainingHistory | None]], list[float] | None]:
    """Read one guide or those of an ensemble, with parameters and history.

    Args:
        path: The file.
        model: The model that the guide was trained for.
        embedding: Specification of an embedding that is not of this package, or None.
        densities: Specification of densities that are not of this package, or None.

    Returns:
        For each guide itself, its parameters under the host's names, and its history; and the
        weights of an ensemble, None for one guide by itself.

    Raises:
        ValueError: If the file is not of this format, is newer, or belongs to another model.
    """
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path}: expected a file written by AmortizedPosterior.save")
        header = json.loads(metadata["header"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header["version"] > FORMAT_VERSION:
        raise ValueError(
            f"{path}: written in format {header['version']}, this version reads up to "
            f"{FORMAT_VERSION}; install a newer pyro-amortize"
        )
    options = {"embedding": embedding, "densities": densities}
    if header["version"] == 1:
        return [_rebuild(path, model, header, tensors, **options)], None
    members = []
    for number, own in enumerate(header["members"]):
        start = f"{number}."
        parts = {
            name.removeprefix(start): value
            for name, value in tensors.items()
            if name.startswith(start)
        }
        members.append(_rebuild(path, model, own, parts, **options))
    return members, header["weights"]


def _rebuild(
    path: str | PathLike[str],
    model: Callable[..., Any],
    header: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    embedding: Any,
    densities: Any,
) -> tuple[AmortizedGuide, dict[str, Any], TrainingHistory | None]:
    """A guide from what `_describe` said of it."""
    guide = AmortizedGuide(
        model,
        observed=header["observed"],
        inputs=header["inputs"],
        groups=header["groups"],
        sizes=header["sizes"],
        missing=header["missing"],
        embedding=embedding or _decode_specs(header["embedding"], embedding_families, "embedding"),
        densities=densities or _decode_specs(header["densities"], density_families, "densities"),
    )
    structure = ModelStructure.from_dict(header["structure"])
    if header["call"] is not None:
        args, kwargs = _decode_call(header["call"], tensors)
        _check_model(path, guide, structure, args, kwargs)
        guide.setup_call = (args, kwargs)
    constants = jnp.asarray(tensors["standardisation"])
    guide.build(structure, Standardisation.from_vector(structure, constants))
    params: dict[str, Any] = guide.init_params()
    expected = params[PARAMS]
    found = {
        name.removeprefix("guide."): jnp.asarray(value)
        for name, value in tensors.items()
        if name.startswith("guide.")
    }
    if {k: jnp.shape(v) for k, v in found.items()} != {
        k: jnp.shape(v) for k, v in expected.items()
    }:
        raise ValueError(
            f"{path}: the weights do not fit the networks; pass the embedding= and densities= "
            "with which the guide was trained"
        )
    params[PARAMS] = {name: found[name] for name in expected}
    params |= _model_params(path, guide, header["call"], tensors)
    history = header["history"] and TrainingHistory.from_dict(header["history"])
    return guide, params, history


def _leaves(name: str, value: Any) -> dict[str, np.ndarray]:
    """Arrays of a parameter of the model by name; those of a network are numbered."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(value)]
    if jax.tree_util.all_leaves([value]):
        return {f"model.{name}": leaves[0]}
    return {f"model.{name}#{number}": leaf for number, leaf in enumerate(leaves)}


def _model_params(
    path: str | PathLike[str],
    guide: AmortizedGuide,
    call: Any,
    tensors: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Values of the model's `param` sites; a network takes its shape from the model."""
    own = {name: value for name, value in tensors.items() if name.startswith("model.")}
    params: dict[str, Any] = {
        name.removeprefix("model."): jnp.asarray(value)
        for name, value in own.items()
        if "#" not in name
    }
    networks = sorted({name.removeprefix("model.").split("#")[0] for name in own if "#" in name})
    if not networks:
        return params
    if call is None:
        raise ValueError(
            f"{path}: parameters {networks} of the model are networks, whose shape the file does "
            "not hold, and the guide was set up with arguments that no file holds. Set it up with "
            "arrays and numbers before saving"
        )
    args, kwargs = guide.setup_call
    trace = run_model(guide.model, args, kwargs, jax.random.key(0))
    for name in networks:
        value = trace[name]["value"]
        leaves = [jnp.asarray(own[each]) for each in _leaves(name, value)]
        params[name] = jax.tree.unflatten(jax.tree.structure(value), leaves)
    return params


def _check_model(
    path: str | PathLike[str],
    guide: AmortizedGuide,
    structure: ModelStructure,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    try:
        now = read_structure(
            guide.model,
            args,
            kwargs,
            observed=guide.observed,
            inputs=guide.inputs,
            groups=guide.groups,
            sizes=guide.sizes,
            missing=guide.missing,
            alternatives=guide.alternatives,
            parents={site.name: site.parents for site in structure.latents},
            pointers={
                site.name: site.points_into for site in structure.latents if site.points_into
            },
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: belongs to another model than the given one: {error}") from error
    differences = structure.differences(now)
    if differences:
        lines = "\n".join(f"  - {difference}" for difference in differences)
        raise ValueError(f"{path}: belongs to another model than the given one:\n{lines}")


def _encode_spec(spec: Any) -> dict[str, Any]:
    options = {field.name: getattr(spec, field.name) for field in fields(spec)}
    return {
        "type": type(spec).__name__,
        "options": {
            name: value if _is_option(value) else {"not_stored": _name_of(value)}
            for name, value in options.items()
        },
    }


def _is_option(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_option(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _name_of(value: Any) -> str:
    """A name for people of an object that no file holds."""
    return getattr(value, "__qualname__", type(value).__qualname__)


def _decode_specs(specs: Mapping[str, Any], families: Any, argument: str) -> dict[str, Any]:
    decoded = {}
    for site, spec in specs.items():
        family = getattr(families, spec["type"], None)
        if family is None:
            raise ValueError(
                f"site '{site}': was trained with {spec['type']}, which is not of this package; "
                f"pass {argument}= as in training"
            )
        for name, value in spec["options"].items():
            if isinstance(value, dict):
                raise ValueError(
                    f"site '{site}': was trained with {name}={value['not_stored']}, which is not "
                    f"of this package; pass {argument}= as in training"
                )
        options = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in spec["options"].items()
        }
        decoded[site] = family(**options)
    return decoded


def _encode_call(
    call: tuple[tuple[Any, ...], Mapping[str, Any]], tensors: dict[str, np.ndarray]
) -> dict[str, Any] | None:
    """The set-up call in JSON, its arrays among the tensors; None if it holds other objects."""
    arrays: dict[str, np.ndarray] = {}

    def encode(value: Any, name: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        arrays[name] = np.asarray(value)
        return {"tensor": name}

    args, kwargs = call
    encoded = {
        "args": [encode(value, f"call.{i}") for i, value in enumerate(args)],
        "kwargs": {name: encode(value, f"call.{name}") for name, value in kwargs.items()},
    }
    if any(array.dtype.kind not in "biuf" for array in arrays.values()):
        return None
    tensors.update(arrays)
    return encoded


def _decode_call(
    encoded: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def decode(item: Mapping[str, Any]) -> Any:
        return item["value"] if "value" in item else jnp.asarray(tensors[item["tensor"]])

    args = tuple(decode(item) for item in encoded["args"])
    return args, {name: decode(item) for name, item in encoded["kwargs"].items()}
