"""Embeddings: networks that turn data into contexts."""

from numpyro_amortize.embeddings.base import Embedding, EmbeddingNetwork
from numpyro_amortize.embeddings.plates import PlateEmbedding

__all__ = ["Embedding", "EmbeddingNetwork", "PlateEmbedding"]
