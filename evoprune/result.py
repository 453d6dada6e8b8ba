"""What a finished run says about itself: the figures of ``result.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from evoprune.run_directory import resume_command
from search_spaces.errors import RunDirectoryError


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class ObjectiveFigures(_Figures):
    """What the search minimised: its name, the winner's value, and the rung and images that the value rests on."""

    name: str
    value: float
    rung: str
    fitness_images: str
    n_images: int


class BudgetFigures(_Figures):
    """One budget of a search, and what became of it.

    Attributes:
        metric: What it counts: a name of ``evoprune.budget.METRICS``.
        unit: In which the costs are given.
        budget: The budget as a share of the dense cost.
        limit: The budget in whole units, rounded down.
        cost: Of the small network; at most ``limit``.
        cost_dense: Of the dense network.
        baseline_uniform_l1_cost: Of the network of largest L1 norm, which keeps the same budgets.
    """

    metric: str
    unit: str
    budget: float
    limit: int
    cost: int
    cost_dense: int
    baseline_uniform_l1_cost: int


class NetworkLatency(_Figures):
    """The time of one call of one network, in ns: what the latency table predicts, and the median of what was measured.

    Nothing is measured where the table speaks for a device that the machine of the run does not have.
    """

    predicted_ns: int
    measured_ns: int | None


class LatencyFigures(_Figures):
    """What networks take, predicted and measured at the end of the run; the search itself never looks at a clock.

    Attributes:
        dense: The dense network.
        evolved: The network that is handed back.
        baseline_uniform_l1: The network of largest L1 norm.
        random_search: The best random network, where the run is compared with random search.
        device: What the latency table speaks for: ``cpu`` or ``cuda:N``.
        device_name: Its processor.
        n_threads: Threads of one operator, fixed for the table and here.
        batch_size: Images per call, likewise.
        dtype: Number type, likewise.
        differences: In what the machine of the run differs from the table's; predictions then speak for another one.
    """

    dense: NetworkLatency
    evolved: NetworkLatency
    baseline_uniform_l1: NetworkLatency
    device: str
    device_name: str
    n_threads: int
    batch_size: int
    dtype: str
    differences: tuple[str, ...]
    random_search: NetworkLatency | None = None


class RungFigures(_Figures):
    """What one rung of the ladder did.

    Attributes:
        n_evaluations: All of them.
        n_failed: How many failed.
        n_images: Images of one evaluation.
        seconds: The sum over evaluations, which may have run at the same time.
        n_stopped: How many ended before their last image, sure to be worse than every survivor.
    """

    n_evaluations: int
    n_failed: int
    n_images: int
    seconds: float
    n_stopped: int = 0


class RandomSearchFigures(_Figures):
    """What random search found with as many evaluations at the judge and the elite rung as the search made.

    Attributes:
        genome_digest: Identity of the best random mask.
        objective: Of it, comparable with that of the search where the rungs are equal.
        rung: Where the objective comes from: the dearest rung that the search used.
        rungs: What each rung did.
        macs: Multiply-adds per image of its network.
        n_params: Parameters of its network.
        costs: What it costs in whole units, by the metrics of the budgets.
        test_accuracy: Of its network after the same adaptation as the small network.
    """

    genome_digest: str
    objective: float
    rung: str
    rungs: dict[str, RungFigures]
    macs: int
    n_params: int
    costs: dict[str, int]
    test_accuracy: float


class SearchResult(_Figures):
    """The figures of a finished search; accuracies are fractions, read once on the test set after the search.

    Attributes:
        run: The run directory; not part of the file, which may be moved with its folder.
        model: Name of the network.
        data: Name of the images.
        weights: Where the dense weights came from: the path of a file, ``trained`` or ``given``.
        seed: Master seed.
        mode: How the space was searched.
        budgets: What the small network was allowed to cost, and costs; all of them hold.
        genome_digest: Identity of the mask.
        macs: Multiply-adds per image of the small network.
        macs_dense: Of the dense network.
        n_params: Parameters of the small network.
        n_params_dense: Of the dense network.
        n_test_images: Images that the accuracies rest on.
        test_accuracy_dense: Of the dense network.
        test_accuracy: Of the small network, with no gradient step taken.
        adaptation: What was done to the small network instead: a name of ``fitness.options.COMPENSATIONS``.
        baseline_uniform_l1_test_accuracy: Of the network that keeps the channels of largest L1 norm, an equal share of
            every group, at the same cost, with its batch-norm statistics estimated anew.
        baseline_uniform_l1_adapted_test_accuracy: Of that network after the same adaptation as the small network.
        baseline_uniform_l1_macs: Its multiply-adds.
        baseline_uniform_l1_n_params: Its parameters.
        uncompensated_layers: Layers of the small network that keep their weights, since their regression is
            ill-conditioned.
        random_search: What random search found, where the run is compared with it.
        latency: What the networks take, where a latency is budgeted.
        fitness: What candidates were judged by: a name of ``evoprune list fitness``.
        objective: What the search minimised; its rung is the dearest one, which chose the winner.
        rungs: What each rung did, cheapest first.
        stopped_by: Which rule ended the search.
        n_generations: Finished generations.
        n_evaluations: Evaluations that were made, over all rungs.
        n_cached: Evaluations that were asked for again and answered from the store.
        n_failed: Evaluations that failed.
        failures: How many failed for which reason.
        search_s: Seconds of the search alone.
        wall_s: Seconds of the run, resumed parts included, without the training of the dense network.
        device: What evaluated.
        precision: Arithmetic of the candidates.
        workers: Worker processes; 0: inside the process.
    """

    run: Path
    model: str
    data: str
    weights: str
    seed: int
    mode: str
    budgets: tuple[BudgetFigures, ...]
    genome_digest: str
    macs: int
    macs_dense: int
    n_params: int
    n_params_dense: int
    n_test_images: int
    test_accuracy_dense: float
    test_accuracy: float
    adaptation: str
    baseline_uniform_l1_test_accuracy: float
    baseline_uniform_l1_adapted_test_accuracy: float
    baseline_uniform_l1_macs: int
    baseline_uniform_l1_n_params: int
    uncompensated_layers: tuple[str, ...]
    fitness: str
    objective: ObjectiveFigures
    rungs: dict[str, RungFigures]
    stopped_by: str
    n_generations: int
    n_evaluations: int
    n_cached: int
    n_failed: int
    failures: dict[str, int]
    search_s: float
    wall_s: float
    device: str
    precision: str
    workers: int
    random_search: RandomSearchFigures | None = None
    latency: LatencyFigures | None = None

    @property
    def best_path(self) -> Path:
        """Folder of the small network, for :func:`evoprune.load`."""
        return self.run / "best"

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``result.json``."""
        return self.model_dump(mode="json", exclude={"run"})

    @classmethod
    def from_json(cls, run: Path, content: dict[str, Any]) -> SearchResult:
        """Return the result that ``content`` of the run directory ``run`` holds.

        Raises:
            RunDirectoryError: A figure is missing or of another kind.
        """
        try:
            return cls.model_validate({**content, "run": run})
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise RunDirectoryError(
                f"{run / 'result.json'} is damaged: {'.'.join(map(str, problem['loc']))}: {problem['msg']}; "
                f"delete it and continue the run with `{resume_command(run)}`"
            ) from None


class EvaluationReport(_Figures):
    """What a small network achieves on test images.

    Attributes:
        artefact: Folder of the network.
        data: Name of the images.
        n_test_images: How many.
        test_accuracy: Share of them that it gets right.
        macs: Its multiply-adds per image.
        n_params: Its parameters.
        genome_digest: Identity of its mask.
        finetuned_epochs: Epochs trained after surgery.
    """

    artefact: Path
    data: str
    n_test_images: int
    test_accuracy: float
    macs: int
    n_params: int
    genome_digest: str
    finetuned_epochs: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return self.model_dump(mode="json")


class PickResult(_Figures):
    """The network of a run that is best within another budget.

    Attributes:
        artefact: Folder of the network.
        run: The run that judged it.
        metric: What the budget counts.
        budget: Share of the dense cost that was asked for.
        objective: What the search minimised, of this network; not comparable with what it gets after further care.
        macs: Multiply-adds per image.
        macs_dense: Of the dense network.
        n_params: Parameters.
        n_params_dense: Of the dense network.
        genome_digest: Identity of its mask.
        adaptation: What was done to its weights.
    """

    artefact: Path
    run: Path
    metric: str
    budget: float
    objective: float
    macs: int
    macs_dense: int
    n_params: int
    n_params_dense: int
    genome_digest: str
    adaptation: str

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return self.model_dump(mode="json")


class FinetuneResult(_Figures):
    """The figures of a finetuning; accuracies are fractions.

    Attributes:
        artefact: Folder of the finetuned network.
        run: The run that it came from.
        source: Folder of the network that was trained on.
        seed: Of order and augmentation.
        epochs: Epochs that were asked for.
        epochs_done: Epochs that were trained, parts included.
        timed_out: Whether the time limit ended it.
        val_accuracy: After each epoch, on the validation images.
        n_test_images: Images that the test accuracies rest on.
        test_accuracy_before: Before the first step.
        test_accuracy: After the last one.
        macs: Multiply-adds per image.
        n_params: Parameters.
        wall_s: Seconds.
        device: Where it was trained.
    """

    artefact: Path
    run: Path
    source: Path
    seed: int
    epochs: int
    epochs_done: float
    timed_out: bool
    val_accuracy: tuple[float, ...]
    n_test_images: int
    test_accuracy_before: float
    test_accuracy: float
    macs: int
    n_params: int
    wall_s: float
    device: str

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return self.model_dump(mode="json")
