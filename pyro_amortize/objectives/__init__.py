"""Objectives: losses for `fit` and for the host's SVI."""

from pyro_amortize.objectives.data_emphasized_elbo import DataEmphasizedELBO
from pyro_amortize.objectives.iwae import IWAE
from pyro_amortize.objectives.mixed import Mixed
from pyro_amortize.objectives.npe import NPE
from pyro_amortize.objectives.vib_loss import VIBLoss
from pyro_amortize.objectives.weighted_elbo import WeightedELBO

__all__ = ["IWAE", "NPE", "DataEmphasizedELBO", "Mixed", "VIBLoss", "WeightedELBO"]
