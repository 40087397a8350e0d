"""The host's parameter store, from which its `SVI` trains a guide."""

from __future__ import annotations

import json
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_amortize.structure import ModelStructure


def register_chain(store_name: str, chain: nn.Module) -> None:
    """Put the networks of a guide into the store.

    Args:
        store_name: Prefix of the names of its parameters.
        chain: The networks.

    Raises:
        RuntimeError: If the store holds another guide's parameters under their names.
    """
    pyro.module(store_name, chain)
    name, parameter = next(iter(chain.named_parameters()))
    stored: Any = pyro.get_param_store()[f"{store_name}$$${name}"]
    if stored.unconstrained() is not parameter:
        raise RuntimeError(
            "AmortizedGuide: the parameter store holds the parameters of another guide, "
            "which SVI would train in place of these; call pyro.clear_param_store() first"
        )


def structure_state(structure: ModelStructure | None) -> Tensor:
    """A structure as bytes for a state dict; none if there is none."""
    text = json.dumps(structure.to_dict()) if structure else ""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def stored_structure(state: Tensor | None) -> ModelStructure | None:
    """The structure in a state dict, or None."""
    if state is None or not len(state):
        return None
    return ModelStructure.from_dict(json.loads(bytes(state.tolist()).decode()))
