"""Embeddings: networks that turn data into contexts."""

from numpyro_amortize.embeddings.base import Embedding, EmbeddingNetwork
from numpyro_amortize.embeddings.image import ImageEmbedding
from numpyro_amortize.embeddings.plates import PlateEmbedding
from numpyro_amortize.embeddings.sequence import SequenceEmbedding

__all__ = [
    "Embedding",
    "EmbeddingNetwork",
    "ImageEmbedding",
    "PlateEmbedding",
    "SequenceEmbedding",
]
