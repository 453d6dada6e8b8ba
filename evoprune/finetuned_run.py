"""The network of a run, trained on: what it learnt from the dense one, tested before and after, as an artefact."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from evoprune.artefact import DESCRIPTION_FILE, ArtefactError, Description, load, save_artefact
from evoprune.finetuning import finetune
from evoprune.interruption import stop_if_asked
from evoprune.observer import Observer
from evoprune.optimisation import accuracy
from evoprune.options import FinetuneOptions
from evoprune.preparation import Preparation
from evoprune.result import FinetuneResult
from evoprune.run_directory import RunDirectory, run_around, write_json
from evoprune.run_paths import free_path
from search_spaces.errors import RunDirectoryError

_NAME = "finetuned"


def network_to_finetune(path: Path) -> tuple[RunDirectory, Path]:
    """Return the run that ``path`` is or lies in, and the folder of the network that is meant.

    Raises:
        RunDirectoryError: ``path`` is neither a run directory nor an artefact in one.
    """
    if not (path / DESCRIPTION_FILE).is_file():
        run = RunDirectory.open_existing(path)
        return run, run.best_path
    around = run_around(path)
    if around is None:
        raise RunDirectoryError(
            f"a finetuning needs the dense network and the images of a run, but the artefact {path} lies in none; name "
            "a run, or an artefact in one, such as `evoprune pick` writes without --out"
        )
    return RunDirectory.open_existing(around), path.resolve()


def default_finetuned_path(run: RunDirectory, source: Path) -> Path:
    """Return where in ``run`` the network in ``source`` goes when it is finetuned; a name that is free."""
    if source.resolve() == run.best_path.resolve():
        return free_path(run.path / _NAME)
    return free_path(run.path / (source.name if source.name.startswith(_NAME) else f"{_NAME}-{source.name}"))


def finetune_run(
    run: RunDirectory,
    source: Path,
    options: FinetuneOptions,
    preparation: Preparation,
    description: Description,
    target: Path,
    observer: Observer,
    *,
    device: torch.device,
) -> FinetuneResult:
    """Write the network in ``source``, taught by the dense one of its ``run``, to ``target``, with its figures.

    Args:
        run: What the network was cut in; nothing of it is changed.
        source: Folder of the artefact that is trained on, which stays as it is.
        options: How to train.
        preparation: The dense network and the images; test images are read before and after.
        description: Of the network in ``source``.
        target: Folder of the artefact; where it exists once the training is over, a number is added to its name.
        observer: Hears of progress, and may stop the training; nothing is written then.
        device: Where to train.

    Raises:
        ArtefactError: ``source`` is damaged or was cut from another network, or ``target`` cannot be written.
        TrainingError: The loss became NaN or infinite.
        InterruptedRunError: The observer asked to stop.
    """
    images, dense = preparation.data, preparation.dense.model
    if description.model.weights_hash != preparation.dense.record.weights_hash:
        raise ArtefactError(
            f"a network is taught by the one that it was cut from, but {source} was cut from one of other weights than "
            f"those of the run {run.path}; finetune it in its own run"
        )
    small = load(source, dense)
    n_epochs_done = 0.0

    def on_progress(epoch: int, n_epochs: int, step: int, n_steps: int, loss: float) -> None:
        nonlocal n_epochs_done
        if step == 1:
            observer.on_stage("finetuning", n_steps)
        stop_if_asked(observer, None, f"{epoch} of {n_epochs} epochs of finetuning")
        n_epochs_done = n_epochs * step / n_steps
        observer.on_step(step, {"epoch": epoch + 1, "loss": loss})

    started = time.perf_counter()
    finetuned = finetune(
        small,
        dense,
        images,
        seed=options.seed,
        recipe=options.recipe(),
        device=device,
        max_time_s=options.max_time_s,
        on_progress=on_progress,
    )
    wall_s = time.perf_counter() - started
    observer.on_stage("testing the networks", None)
    before, after = (accuracy(net.to(device), images.test, images, device=device) for net in (small, finetuned.model))
    if target.exists():  # made meanwhile, as by another training of this run
        target, taken = free_path(target), target
        observer.on_note(f"{taken} exists by now: the finetuned network goes to {target}")
    n_epochs = description.finetuned_epochs + n_epochs_done
    save_artefact(target, finetuned.model, description.model_copy(update={"finetuned_epochs": n_epochs}))
    result = FinetuneResult(
        artefact=target,
        run=run.path,
        source=source,
        seed=options.seed,
        epochs=options.epochs,
        epochs_done=n_epochs_done,
        timed_out=finetuned.history.timed_out,
        val_accuracy=finetuned.history.val_accuracy,
        n_test_images=len(images.test),
        test_accuracy_before=before,
        test_accuracy=after,
        macs=description.cost.macs,
        n_params=description.cost.n_params,
        wall_s=wall_s,
        device=str(device),
    )
    write_json(target / "finetune.json", result.to_json())
    return result
