"""Objectives: losses for `fit` and for the host's SVI."""

from pyro_amortize.objectives.data_emphasized_elbo import DataEmphasizedELBO
from pyro_amortize.objectives.dip_elbo import DIPELBO
from pyro_amortize.objectives.fisher_regularized import FisherRegularized
from pyro_amortize.objectives.info_elbo import InfoELBO
from pyro_amortize.objectives.iwae import IWAE
from pyro_amortize.objectives.mixed import Mixed
from pyro_amortize.objectives.mmd_regularizer import MMDRegularizer
from pyro_amortize.objectives.npe import NPE
from pyro_amortize.objectives.self_consistency import SelfConsistency
from pyro_amortize.objectives.trajectory_balance import TrajectoryBalance
from pyro_amortize.objectives.vib_loss import VIBLoss
from pyro_amortize.objectives.vis import VIS
from pyro_amortize.objectives.wake_sleep import RWS, WakeSleep
from pyro_amortize.objectives.weighted_elbo import WeightedELBO

__all__ = [
    "DIPELBO",
    "IWAE",
    "NPE",
    "RWS",
    "VIS",
    "DataEmphasizedELBO",
    "FisherRegularized",
    "InfoELBO",
    "MMDRegularizer",
    "Mixed",
    "SelfConsistency",
    "TrajectoryBalance",
    "VIBLoss",
    "WakeSleep",
    "WeightedELBO",
]
