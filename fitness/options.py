"""How genomes are judged: objective, images and compensation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fitness.compensation import CompensationOptions
from search_spaces.errors import OptionError, UnknownNameError, check_rules

OBJECTIVES = {
    "kl": "Kullback-Leibler divergence of the dense network's predictions from the candidate's; needs no labels",
    "cross_entropy": "cross-entropy with the labels",
    "error": "share of images that are misclassified",
}
FITNESS_IMAGES = {
    "mixture": "plain and noisy images, for networks that have memorised their images",
    "heldout": "validation images as they are, for networks that were not trained on them",
}
COMPENSATIONS = {
    "sequential": "least squares, layer by layer, from the pruned network's own activations",
    "static": "least squares, every layer on its own, from the dense network's statistics: no image is passed; the "
    "widest, beyond 64 MiB of covariances together, are solved channel by channel; what is handed back is solved "
    "sequentially",
    "merge": "the weights of dropped channels added to those of the kept channels most like them; solves nothing",
    "recalibrate": "batch-norm statistics estimated anew",
    "none": "the sliced weights as they are",
}
#: Those that change weights, so that errors after an update foretell what a candidate is worth.
UPDATING_COMPENSATIONS = frozenset({"sequential", "static", "merge"})


@dataclass(frozen=True)
class FitnessOptions:
    """How genomes are judged.

    Attributes:
        objective: A name of :data:`OBJECTIVES`; minimised.
        temperature: At which ``kl`` compares the predictions; at high ones every image counts, not only unsure ones.
        fitness_images: A name of :data:`FITNESS_IMAGES`.
        n_fitness_images: Images on which a candidate is judged.
        n_elite_images: Images on which the rung judges that adapts a candidate as it would be shipped.
        n_calibration_images: Training images from which a candidate is compensated.
        n_lessons: Training images that candidates are finetuned on, where they are.
        n_distillation_steps: Gradient steps of such a finetuning.
        compensation: A name of :data:`COMPENSATIONS`; what a candidate gets before it is judged.
        solve: How layers are solved where they are compensated sequentially. A static solve takes none of it: its
            damping is 1e-2.
        final_calibration_images: Training images for the network that is handed back.
        final_augmented_share: Share of them that are randomly cropped, mirrored, turned, scaled and jittered, where
            layers are solved sequentially. A network is sure of the images that it has memorised; it is not of these,
            nor of those that it will meet.
        final_positions: Most output positions per image and layer for it.
        final_multiplications: Bound on the multiplications of one layer's solve for it.
        final_rectified_passes: Further solves for rectified outputs for it.
        final_pair_steps: Steps of a layer for what the one behind its ReLU makes, for it; elites get none.
        final_max_bytes: Bound on the largest activation of all its calibration images; wide inputs get fewer images.
        n_elite_calibration_images: As many of them, at most, for elites, which are solved in the same way.
        elite_multiplications: Bound on the multiplications of one layer's solve for them.
        batch_size: Images per forward pass.
        max_prefix_bytes: Bound on the activations that each thread keeps of what candidates share; 0 keeps none. No
            result depends on it.
    """

    objective: Literal["kl", "cross_entropy", "error"] = "kl"
    temperature: float = 16.0
    fitness_images: Literal["mixture", "heldout"] = "mixture"
    n_fitness_images: int = 512
    n_elite_images: int = 2048
    n_calibration_images: int = 256
    n_lessons: int = 4096
    n_distillation_steps: int = 200
    compensation: Literal["sequential", "static", "merge", "recalibrate", "none"] = "sequential"
    solve: CompensationOptions = field(default_factory=CompensationOptions)
    final_calibration_images: int = 6000
    final_augmented_share: float = 1 / 3
    final_positions: int = 16
    final_multiplications: float = 4e10
    final_rectified_passes: int = 3
    final_pair_steps: int = 1
    final_max_bytes: int = 1 << 31
    n_elite_calibration_images: int = 512
    elite_multiplications: float = 5e9
    batch_size: int = 256
    max_prefix_bytes: int = 1 << 29

    @property
    def final_compensation(self) -> Literal["sequential", "merge", "recalibrate", "none"]:
        """What elites and the network that is handed back get: ``compensation``, or for ``static`` the dearer solve."""
        return "sequential" if self.compensation == "static" else self.compensation

    def __post_init__(self) -> None:
        """Check names and counts.

        Raises:
            UnknownNameError: No such objective, image kind or compensation.
            OptionError: A count is not positive.
        """
        for kind, name, valid in (
            ("objective", self.objective, OBJECTIVES),
            ("kind of fitness images", self.fitness_images, FITNESS_IMAGES),
            ("compensation", self.compensation, COMPENSATIONS),
        ):
            if name not in valid:
                raise UnknownNameError(kind, name, valid)
        if self.max_prefix_bytes < 0:
            raise OptionError(
                f"`max_prefix_bytes >= 0` must hold, but got {self.max_prefix_bytes}; 0 keeps nothing of what is shared"
            )
        if not 0 < self.temperature < float("inf"):
            raise OptionError(f"`0 < temperature < inf` must hold, but got {self.temperature}; the default is 16")
        for rule in (
            "n_fitness_images",
            "n_calibration_images",
            "n_elite_images",
            "n_lessons",
            "n_distillation_steps",
            "final_calibration_images",
            "final_positions",
            "final_max_bytes",
            "n_elite_calibration_images",
            "batch_size",
        ):
            if getattr(self, rule) < 1:
                raise OptionError(
                    f"`{rule} >= 1` must hold, but got {getattr(self, rule)}; leave it out for the default"
                )
        check_rules(
            [
                ("0 <= final_augmented_share <= 1", 0 <= self.final_augmented_share <= 1, self.final_augmented_share),
                ("final_rectified_passes >= 0", self.final_rectified_passes >= 0, self.final_rectified_passes),
                ("final_pair_steps >= 0", self.final_pair_steps >= 0, self.final_pair_steps),
                ("final_multiplications > 0", self.final_multiplications > 0, self.final_multiplications),
                ("elite_multiplications > 0", self.elite_multiplications > 0, self.elite_multiplications),
            ]
        )
