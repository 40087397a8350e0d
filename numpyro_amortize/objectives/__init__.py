"""Objectives: losses for `fit` and for the host's SVI."""

from numpyro_amortize.objectives.data_emphasized_elbo import DataEmphasizedELBO
from numpyro_amortize.objectives.dip_elbo import DIPELBO
from numpyro_amortize.objectives.fisher_regularized import FisherRegularized
from numpyro_amortize.objectives.info_elbo import InfoELBO
from numpyro_amortize.objectives.iwae import IWAE
from numpyro_amortize.objectives.mixed import Mixed
from numpyro_amortize.objectives.mmd_regularizer import MMDRegularizer
from numpyro_amortize.objectives.npe import NPE
from numpyro_amortize.objectives.self_consistency import SelfConsistency
from numpyro_amortize.objectives.trajectory_balance import TrajectoryBalance
from numpyro_amortize.objectives.vib_loss import VIBLoss
from numpyro_amortize.objectives.vis import VIS
from numpyro_amortize.objectives.wake_sleep import RWS, WakeSleep
from numpyro_amortize.objectives.weighted_elbo import WeightedELBO

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
