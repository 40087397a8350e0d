"""Effect handlers around a model."""

from numpyro_amortize.handlers.missing import fill_missing
from numpyro_amortize.handlers.path import add_path

__all__ = ["add_path", "fill_missing"]
