"""Networks by name, and their weights from files."""

from search_spaces.models.build import MODELS, ModelSpec, build_model, default_input_shape, foreign_code
from search_spaces.models.channel_pad import ChannelPad, Subsample
from search_spaces.models.weights import hash_weights, load_weights

__all__ = [
    "MODELS",
    "ChannelPad",
    "ModelSpec",
    "Subsample",
    "build_model",
    "default_input_shape",
    "foreign_code",
    "hash_weights",
    "load_weights",
]
