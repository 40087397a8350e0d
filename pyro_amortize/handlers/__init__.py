"""Effect handlers around a model."""

from pyro_amortize.handlers.missing import fill_missing
from pyro_amortize.handlers.path import add_path
from pyro_amortize.handlers.truncated_prior import TruncatedPrior, truncated_prior

__all__ = ["TruncatedPrior", "add_path", "fill_missing", "truncated_prior"]
