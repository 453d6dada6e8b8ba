"""Images: data sets by name, splits, normalisation and augmentation."""

from fitness.data.augmentation import crop_and_flip, crop_turn_and_jitter, fitness_mixture, plain_and_noisy
from fitness.data.imagefolder import StreamedSplit
from fitness.data.images import ImageBatch, ImageData, ImageSplit, InMemorySplit, normalise
from fitness.data.load import DATA, load_data

__all__ = [
    "DATA",
    "ImageBatch",
    "ImageData",
    "ImageSplit",
    "InMemorySplit",
    "StreamedSplit",
    "crop_and_flip",
    "crop_turn_and_jitter",
    "fitness_mixture",
    "load_data",
    "normalise",
    "plain_and_noisy",
]
