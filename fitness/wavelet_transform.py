"""Two-dimensional wavelet transforms of stacks of feature maps, and how they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pywt

from search_spaces.errors import UnknownNameError, check_rules
from search_spaces.genome import FloatArray

AGGREGATIONS = {
    "mean": "mean of every coefficient over the kept channels",
    "maxabs": "mean of the approximation, largest coefficient of the details; saturates with few channels",
    "energy": "mean energy of every sub-band over the kept channels",
}
_BANDS = 4


@dataclass(frozen=True)
class WaveletOptions:
    """How feature maps are decomposed and compared.

    Attributes:
        wavelet: A discrete wavelet that PyWavelets knows.
        level: Levels of the transform; fewer where a map is too small, none below 2 x 2.
        mode: How PyWavelets extends a map; ``periodization`` gives the fewest coefficients.
        rule: A name of :data:`AGGREGATIONS`.
        discrimination: Weight of the discriminative term, at least 0.
        saving: Weight of the saved share of MACs, at least 0.
        max_bytes: Memory of one group's coefficients; fewer images are used where it does not suffice.
        batch_size: Images per forward pass.
    """

    wavelet: str = "haar"
    level: int = 1
    mode: str = "periodization"
    rule: Literal["mean", "maxabs", "energy"] = "mean"
    discrimination: float = 0.5
    saving: float = 1.0
    max_bytes: int = 1 << 28
    batch_size: int = 128

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            UnknownNameError: There is no such wavelet, mode or rule.
            OptionError: A number is out of range.
        """
        for kind, name, valid in (
            ("wavelet", self.wavelet, pywt.wavelist(kind="discrete")),
            ("signal extension mode", self.mode, pywt.Modes.modes),
            ("aggregation rule", self.rule, AGGREGATIONS),
        ):
            if name not in valid:
                raise UnknownNameError(kind, name, valid)
        check_rules(
            [
                ("level >= 1", self.level >= 1, self.level),
                ("0 <= discrimination < inf", 0 <= self.discrimination < np.inf, self.discrimination),
                ("0 <= saving < inf", 0 <= self.saving < np.inf, self.saving),
                ("max_bytes >= 1", self.max_bytes >= 1, self.max_bytes),
                ("batch_size >= 1", self.batch_size >= 1, self.batch_size),
            ]
        )


@dataclass(frozen=True)
class Coefficients:
    """The transform of a stack of maps.

    Attributes:
        low: ``(..., n_low)`` approximation at the coarsest level.
        bands: Horizontal, vertical and diagonal details, ``(..., n_high)`` each, all levels side by side; none where
            the maps are smaller than 2 x 2.
    """

    low: npt.NDArray[np.float32]
    bands: tuple[npt.NDArray[np.float32], ...]

    @property
    def high(self) -> npt.NDArray[np.float32]:
        """``(..., n)`` all details."""
        return np.concatenate(self.bands, axis=-1) if self.bands else self.low[..., :0]

    @property
    def energies(self) -> FloatArray:
        """``(..., 4)`` energy of each sub-band: approximation, horizontal, vertical, diagonal."""
        parts = [*(self.low, *self.bands), *[self.low[..., :0]] * (_BANDS - 1 - len(self.bands))]
        return np.stack([np.square(part, dtype=np.float64).sum(axis=-1) for part in parts], axis=-1)


def transform(maps: npt.NDArray[np.float32], options: WaveletOptions) -> Coefficients:
    """Return the two-dimensional wavelet transform of every map of ``maps`` ``(..., height, width)`` at once."""
    smallest = min(maps.shape[-2:])
    level = min(options.level, int(np.log2(smallest))) if smallest else 0
    low, details = maps, []
    for _ in range(level):
        low, level_bands = pywt.dwt2(low, options.wavelet, mode=options.mode, axes=(-2, -1))
        details.append([_flat(band) for band in level_bands])
    bands = tuple(np.concatenate(parts, axis=-1) for parts in zip(*reversed(details), strict=True))
    return Coefficients(_flat(low), bands)


def _flat(maps: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return maps.reshape(*maps.shape[:-2], maps.shape[-2] * maps.shape[-1])
