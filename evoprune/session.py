"""One process's share of a run: from a run directory and its options to ``result.json``."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from safetensors.torch import save_file
from torch import nn

from evoprune.baseline import l1_scores
from evoprune.callbacks import Callback, SearchOutcome
from evoprune.comparison import RANDOM, RandomOutcome, compare_at_random
from evoprune.course import INTERRUPTED
from evoprune.evaluation_store import EvaluationStore
from evoprune.execution import Executor, InProcessExecutor
from evoprune.finishing import (
    SensitivityWriter,
    baseline_genome,
    budgets_to_compare_at,
    finish,
    fitness_options,
    write_front,
)
from evoprune.fitness_plan import check_fitness, ladder_plan, objective_name
from evoprune.interruption import InterruptedRunError, stop_if_asked
from evoprune.knowledge import TWO_STEP, Choice, Knowledge, gather_knowledge
from evoprune.latency_figures import measure_run
from evoprune.layer_distillation import DistilledNetworks, FollowingExecutor
from evoprune.limits import stop_rules
from evoprune.modes import MODES, SearchTask
from evoprune.modes.layerwise import LayerwiseSearch
from evoprune.observer import Observer
from evoprune.options import SearchOptions
from evoprune.preparation import OBJECT, DenseNetwork, Preparation, prepare, resolve_device
from evoprune.resolving import resolve_options
from evoprune.result import RungFigures, SearchResult
from evoprune.run_directory import RunDirectory, write_json
from evoprune.run_figures import Findings, run_result, rung_figures
from evoprune.runner import run_search
from evoprune.search import LadderPlan, LocalError, SearchConfig, Strategy, comparable_rows, make_generator
from evoprune.search_progress import SearchProgress
from evoprune.threads import one_thread
from fitness.data import ImageData
from fitness.distillation import DISTILLATION_RUNG
from fitness.ladder import ModelSource
from fitness.network import NETWORK_RUNG
from fitness.options import UPDATING_COMPENSATIONS
from fitness.recipe import EvaluatorRecipe, make_recipe
from fitness.seeding import two_step_of
from search_spaces.errors import OptionError, RunDirectoryError

_DENSE_FILE = "dense.safetensors"
_LATENCY_FILE = "latency.json"


def run_session(
    run: RunDirectory,
    options: SearchOptions,
    preparation: Preparation,
    observer: Observer,
    callbacks: Sequence[Callback] = (),
) -> SearchResult:
    """Run the search of ``run`` from its last checkpoint to its end, and write its network and its result.

    Raises:
        InterruptedRunError: The user stopped it; it says how to go on.
        ExecutionError: Workers cannot be had, or every candidate failed.
        RunDirectoryError: The run directory cannot be written, or another process works on it.
    """
    started = time.perf_counter()
    check_fitness(options, is_object=preparation.dense.record.name is None)
    space = preparation.space
    plan = plan_of(options, preparation)
    with run.locked():
        observer.on_stage("preparing the evaluation", None)
        knowledge = knowledge_of(options, preparation)
        write_json(run.knowledge_path, knowledge.to_json())
        for name, reason in knowledge.left_out.items():
            observer.on_note(f"left out of the mixture: {name}: {reason}")
        search = make_search(options, preparation, knowledge)
        try:
            stop_if_asked(observer, run.path, "the criteria")
        except InterruptedRunError:
            run.append_log(INTERRUPTED, reason="asked to stop while it was prepared")  # no store could tell yet
            raise
        with (
            EvaluationStore(run.evaluations_path, space.n_genes, space.fingerprint) as store,
            contextlib.closing(_executor_of(run, search, options, preparation)) as executor,
        ):
            search_started = time.perf_counter()
            judged_by = objective_name(plan.judge, options.objective)
            listeners = [SearchProgress(observer, judged_by), SensitivityWriter(run, search), *callbacks]
            outcome = run_search(
                search,
                executor,
                store,
                run,
                callbacks=listeners,
                stop=stop_rules(options),
                should_stop=observer.should_stop,
            )
            search_ended = time.perf_counter()
            if outcome.status == "interrupted":
                raise InterruptedRunError(run.path, _progress_of(outcome))
            is_changing = isinstance(executor, FollowingExecutor)  # then errors compare within one layer alone
            since = int(comparable_rows(search.logbook)[0]["gen"]) if is_changing else 0
            write_front(run, store, plan.judge, preparation, since=since)
            rungs = rung_figures(store, plan.rungs)
            failures = Counter(r.evaluation.failure_reason for r in store.records() if r.evaluation.failure)
            random = _random_outcome(run, options, preparation, outcome, executor, rungs, observer)
        rival = random.best.genome if random is not None and random.best is not None else None
        cut_from = executor.network if isinstance(executor, FollowingExecutor) else None
        accuracies, uncompensated = finish(run, options, preparation, outcome, observer, rival, cut_from)
        latency = measure_run(run, options, preparation, outcome, observer, rival)
        wall_s = outcome.elapsed_s + (search_started - started) + (time.perf_counter() - search_ended)
        if random is not None:
            wall_s += random.earlier_s
        findings = Findings(outcome, rungs, failures, accuracies, uncompensated, random, latency, wall_s)
        result = run_result(run, options, preparation, findings)
        write_json(run.result_path, result.to_json())
    return result


def make_search(options: SearchOptions, preparation: Preparation, knowledge: Knowledge | None = None) -> Strategy:
    """Return the search of the mode, with all that is known before the first evaluation.

    Args:
        options: Of the run.
        preparation: Network, images and space.
        knowledge: What criteria say, :func:`knowledge_of` the arguments by default.

    Raises:
        OptionError: A criterion that was asked for by name cannot be computed.
    """
    knowledge = knowledge or knowledge_of(options, preparation)
    config = SearchConfig(
        budgets=preparation.budgets,
        ladder=plan_of(options, preparation),
        population_size=options.population_size,
        n_generations=options.n_generations,
        random_share=options.random_share,
        prior_temperature=options.prior_temperature,
        initial=_choice(options, preparation).initial_shares(options.population_size),
    )
    scores = knowledge.channel_scores
    if scores is None:
        scores = l1_scores(preparation.dense.model, preparation.space)
    mode = MODES[options.mode]
    baseline = baseline_genome(options, preparation) if mode.needs_baseline else None
    guiding = next((prior.name for prior in knowledge.priors if prior.scores is not None), "")
    task = SearchTask(
        preparation.space,
        config,
        options,
        scores,
        knowledge.seeds,
        knowledge.priors,
        baseline,
        scores_are_errors=guiding == TWO_STEP,
        local_error=_local_error(options, preparation) if options.local_search else None,
    )
    return mode.build(task)


def _local_error(options: SearchOptions, preparation: Preparation) -> LocalError:
    """Return the error of the two-step method without update, whose change by a swap is exact."""
    with one_thread():
        return two_step_of(recipe_of(options, preparation))


def plan_of(options: SearchOptions, preparation: Preparation) -> LadderPlan:
    """Return which rung does what in the mode of the run."""
    return MODES[options.mode].plan(ladder_plan(options, len(preparation.data.val)))


def recipe_of(
    options: SearchOptions, preparation: Preparation, rungs: Sequence[str] = (NETWORK_RUNG,)
) -> EvaluatorRecipe:
    """Return how candidates are judged, as plain data."""
    record = preparation.dense.record
    return make_recipe(
        preparation.dense.model,
        preparation.space,
        preparation.data,
        fitness_options(options, preparation),
        seed=options.seed,
        device=preparation.device,
        rungs=rungs,
        source=None
        if record.name is None
        else ModelSource(record.name, record.n_classes, record.args, record.input_shape),
    )


def knowledge_of(options: SearchOptions, preparation: Preparation) -> Knowledge:
    """Return first genomes and priors by the criteria that ``options`` name; nothing for modes that ask for nothing.

    Raises:
        OptionError: A criterion that was asked for by name cannot be computed.
    """
    mode = MODES[options.mode]
    if not mode.is_informed:
        return Knowledge(None, ())
    with one_thread():
        return gather_knowledge(
            recipe_of(options, preparation),
            _choice(options, preparation),
            population_size=options.population_size,
            rng=make_generator(options.seed, "knowledge"),
            model=preparation.dense.model,
            seed=options.seed,
            budgets=preparation.budgets,
            is_spread=mode.has_front or all(budget >= 1 for budget in preparation.budgets.values()),
        )


def _choice(options: SearchOptions, preparation: Preparation) -> Choice:
    compensation = fitness_options(options, preparation).compensation
    return options.criteria(is_compensated=compensation in UPDATING_COMPENSATIONS)


def make_executor(
    options: SearchOptions,
    preparation: Preparation,
    network: nn.Module | None = None,
    before: Executor | None = None,
) -> Executor:
    """Return where candidates are evaluated; the caller closes it.

    Args:
        options: Of the run.
        preparation: Network, images and space.
        network: What candidates are cut from; the dense network by default, which stays the teacher in any case.
        before: What this function returned for another network, not needed any more.

    Raises:
        ExecutionError: Ray cannot be reached, or cannot place the workers.
    """
    device, dense = preparation.device, preparation.dense.model
    recipe = recipe_of(options, preparation, plan_of(options, preparation).rungs)
    if network is not None and network is not dense:
        recipe = recipe.with_network(network)
    if not options.workers:
        # What depends on the dense network alone is computed by one thread too, as on a worker: equal bits.
        with one_thread():
            evaluator = recipe.build(dense if network is None else network)
        if before is not None:
            before.close()
        return InProcessExecutor(evaluator, device=device)
    from evoprune.execution.ray_executor import RayExecutor  # Ray is heavy, and needed here only

    if isinstance(before, RayExecutor):
        before.renew(recipe)
        return before
    n_gpus = gpu_share(options.workers, torch.cuda.device_count()) if device.type == "cuda" else 0
    return RayExecutor(recipe, options.workers, address=options.address, n_gpus_per_worker=n_gpus)


def gpu_share(n_workers: int, n_devices: int) -> float:
    """Return how much of a device each worker gets: all of one, or as equal a part as whole numbers allow."""
    return 1 / max(math.ceil(n_workers / max(n_devices, 1)), 1)


def _executor_of(run: RunDirectory, search: Strategy, options: SearchOptions, preparation: Preparation) -> Executor:
    """Return where the candidates of ``search`` are evaluated, wherever it may have come to."""
    place = partial(make_executor, options, preparation)
    if not isinstance(search, LayerwiseSearch) or not options.n_layer_distillation_steps:
        return place()
    recipe = recipe_of(options, preparation, (DISTILLATION_RUNG,))
    networks = DistilledNetworks(run, recipe, preparation.dense.model, options.n_layer_distillation_steps)
    return FollowingExecutor(search, networks, place)


def prepare_again(
    run: RunDirectory, observer: Observer, *, model: nn.Module | None = None, data: ImageData | None = None
) -> tuple[SearchOptions, Preparation]:
    """Return options, network, images and space of a run that was started earlier.

    Raises:
        RunDirectoryError: One of them is not what the run was started with; the message says which.
        OptionError: The run was started with a Python object, which is needed again.
    """
    run.check_hashes(run.read_config()["hashes"])  # edited options, before anything is built from them
    options = read_options(run)
    for name, what, given in (("model", "a model", model), ("data", "images", data)):
        if getattr(options, name).startswith(OBJECT) and given is None:
            raise OptionError(
                f"the run {run.path} was started with {what} given as a Python object, which its name alone cannot "
                f"rebuild; continue it from Python and pass `{name}=...`"
            )
    dense_weights, latency_table = run.path / _DENSE_FILE, run.path / _LATENCY_FILE
    preparation = prepare(
        options,
        observer,
        model=model,
        data=data,
        dense_weights=dense_weights if dense_weights.is_file() else None,
        latency_table=latency_table if latency_table.is_file() else None,
        device=resolve_device(options.device),
    )
    run.check_hashes(preparation.hashes)
    return options, preparation


def read_options(run: RunDirectory) -> SearchOptions:
    """Return the resolved options of ``run``.

    Raises:
        RunDirectoryError: They are damaged.
    """
    try:
        return resolve_options(SearchOptions, run.read_config()["options"])
    except (OptionError, ValueError) as error:
        raise RunDirectoryError(
            f"the options in {run.config_path} must be those of this evoprune, but {error}; restore the file, "
            "or use the evoprune that wrote it"
        ) from error


def save_inputs(run: RunDirectory, preparation: Preparation) -> None:
    """Keep what the run needs and files elsewhere, or a cache, would have to keep for it.

    Raises:
        RunDirectoryError: The run directory cannot be written.
    """
    if preparation.dense.is_trained_here:
        save_dense(run, preparation.dense)
    if preparation.latency_table is not None:
        write_json(run.path / _LATENCY_FILE, preparation.latency_table.to_json())


def save_dense(run: RunDirectory, dense: DenseNetwork) -> None:
    """Keep the weights of a network that was trained for this run, so that the run does not depend on a cache."""
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in dense.model.state_dict().items()}
    unfinished = run.path / f".{_DENSE_FILE}"
    try:
        save_file(tensors, unfinished)
        unfinished.chmod(0o644)  # safetensors writes for the owner alone
        unfinished.replace(run.path / _DENSE_FILE)
    except OSError as error:
        raise RunDirectoryError(f"{run.path} must be writable, but {error}; free some space") from error


def _random_outcome(
    run: RunDirectory,
    options: SearchOptions,
    preparation: Preparation,
    outcome: SearchOutcome,
    executor: Executor,
    rungs: Mapping[str, RungFigures],
    observer: Observer,
) -> RandomOutcome | None:
    """Return what random search finds with as many evaluations; None where nobody asked for it."""
    if options.compare != RANDOM or outcome.best is None:
        return None
    found = compare_at_random(
        run,
        preparation.space,
        budgets_to_compare_at(preparation, outcome.best.genome),
        executor,
        plan_of(options, preparation),
        {rung: figures.n_evaluations for rung, figures in rungs.items()},
        seed=options.seed,
        observer=observer,
    )
    if found.best is None:
        observer.on_note("there is no random network to compare with, since the evaluation of every one failed")
    return found


def _progress_of(outcome: SearchOutcome) -> str:
    done = "the initial population" if outcome.generation == 0 else f"generation {outcome.generation}"
    return f"{done if outcome.generation >= 0 else 'less than one generation'}, {outcome.n_evaluations} evaluations"
