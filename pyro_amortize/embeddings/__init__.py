"""Embeddings: networks that turn data into contexts."""

from pyro_amortize.embeddings.base import Embedding, EmbeddingNetwork
from pyro_amortize.embeddings.image import ImageEmbedding
from pyro_amortize.embeddings.mlp import MLPEmbedding
from pyro_amortize.embeddings.perceiver import PerceiverEmbedding
from pyro_amortize.embeddings.plates import PlateEmbedding
from pyro_amortize.embeddings.sequence import SequenceEmbedding

__all__ = [
    "Embedding",
    "EmbeddingNetwork",
    "ImageEmbedding",
    "MLPEmbedding",
    "PerceiverEmbedding",
    "PlateEmbedding",
    "SequenceEmbedding",
]
