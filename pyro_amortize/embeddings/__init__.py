"""Embeddings: networks that turn data into contexts."""

from pyro_amortize.embeddings.base import Embedding, EmbeddingNetwork
from pyro_amortize.embeddings.plates import PlateEmbedding

__all__ = ["Embedding", "EmbeddingNetwork", "PlateEmbedding"]
