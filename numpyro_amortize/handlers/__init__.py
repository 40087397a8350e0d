"""Effect handlers around a model."""

from numpyro_amortize.handlers.missing import fill_missing

__all__ = ["fill_missing"]
