"""Effect handlers around a model."""

from pyro_amortize.handlers.missing import fill_missing

__all__ = ["fill_missing"]
