"""Embeddings: networks that turn data into contexts."""

from numpyro_amortize.embeddings.base import Embedding, EmbeddingNetwork
from numpyro_amortize.embeddings.image import ImageEmbedding
from numpyro_amortize.embeddings.mlp import MLPEmbedding
from numpyro_amortize.embeddings.perceiver import PerceiverEmbedding
from numpyro_amortize.embeddings.plates import PlateEmbedding
from numpyro_amortize.embeddings.sequence import SequenceEmbedding

__all__ = [
    "Embedding",
    "EmbeddingNetwork",
    "ImageEmbedding",
    "MLPEmbedding",
    "PerceiverEmbedding",
    "PlateEmbedding",
    "SequenceEmbedding",
]
