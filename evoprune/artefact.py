"""The artefact: a folder with the weights of a small network and all that it takes to rebuild it, without pickle."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from evoprune.run_directory import RunDirectory, as_path, resume_command, run_around
from search_spaces import SearchSpace, prune_model
from search_spaces.errors import EvoPruneError, OptionError, RunDirectoryError
from search_spaces.genome import BoolArray, genome_digest, pack_genome
from search_spaces.models import build_model, foreign_code

SCHEMA = 1
WEIGHTS_FILE = "weights.safetensors"
DESCRIPTION_FILE = "evoprune.json"
_FILES = frozenset({WEIGHTS_FILE, DESCRIPTION_FILE})
_MOST_SHOWN = 5
_COPY_MARK = {"evoprune": "export"}  # in the header of the weights, which no reader of tensors looks at


class ArtefactError(EvoPruneError, ValueError):
    """An artefact is missing, damaged, of another schema, or does not fit the network it is loaded into."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelRecord(_Record):
    """How the dense network is built.

    Attributes:
        name: A name for :func:`search_spaces.models.build_model`; None for a network that was given as an object.
        args: Keywords for its factory.
        n_classes: Length of the logits.
        input_shape: ``(C, H, W)``.
        weights_hash: Content hash of the dense weights.
    """

    name: str | None
    args: dict[str, Any] = {}
    n_classes: int
    input_shape: tuple[int, int, int]
    weights_hash: str


class SpaceRecord(_Record):
    """How the space was traced; the arguments of :meth:`search_spaces.SearchSpace.trace`, and its fingerprint."""

    protect: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    min_channels: int | float = 1
    round_to: int = 1
    block_genes: bool = False
    fingerprint: str

    def trace(self, model: nn.Module, input_shape: tuple[int, int, int], *, verify: bool = True) -> SearchSpace:
        """Return the space of ``model`` under these arguments."""
        return SearchSpace.trace(
            model,
            example_input(model, input_shape),
            protect=self.protect,
            only=self.only,
            min_channels=self.min_channels,
            round_to=self.round_to,
            block_genes=self.block_genes,
            verify=verify,
        )


class GenomeRecord(_Record):
    """The mask, twice: packed (highest bit first, as hexadecimal digits), and as kept channels by group for people.

    ``group_sizes`` are the groups' numbers of genes, all kept in the dense network.
    """

    n_genes: int
    digest: str
    packed: str
    kept_channels: dict[str, tuple[int, ...]]
    group_sizes: dict[str, int] = {}


class CostRecord(_Record):
    """Cost of the small and of the dense network; one MAC is one multiply-add of a convolution or linear layer."""

    macs: int
    macs_dense: int
    n_params: int
    n_params_dense: int


class Description(_Record):
    """The content of ``evoprune.json``.

    Attributes:
        mean: Per-channel mean that images in [0, 1] are normalised with.
        std: Their standard deviation.
        seed: Master seed of the run.
        data: Name and content hash of the images.
        added_biases: Layers without a bias in the dense network that were given one by compensation.
        finetuned_epochs: Epochs trained after surgery, parts included; 0 where no gradient step was taken.
        versions: Of evoprune and of what it computed with.
    """

    format: Literal["evoprune-artefact"] = "evoprune-artefact"
    schema_version: int = Field(default=SCHEMA, alias="schema", ge=1)
    model: ModelRecord
    space: SpaceRecord
    genome: GenomeRecord
    cost: CostRecord
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    data: dict[str, str] = {}
    added_biases: tuple[str, ...] = ()
    finetuned_epochs: float = 0.0
    versions: dict[str, str] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), populate_by_name=True)


def record_genome(space: SearchSpace, genome: BoolArray) -> GenomeRecord:
    """Return ``genome`` ``(n_genes,)`` as it is written into an artefact."""
    kept = {
        group.name: tuple(int(i) for i in np.flatnonzero(genome[group.start : group.start + group.size]))
        for group in space.groups
    }
    return GenomeRecord(
        n_genes=space.n_genes,
        digest=genome_digest(genome),
        packed=pack_genome(genome).hex(),
        kept_channels=kept,
        group_sizes={group.name: group.size for group in space.groups},
    )


def record_cost(space: SearchSpace, genome: BoolArray) -> CostRecord:
    """Return what the network of ``genome`` ``(n_genes,)`` and the dense network cost."""
    return CostRecord(
        macs=int(space.macs(genome[None])[0]),
        macs_dense=int(space.macs_dense),
        n_params=int(space.n_params(genome[None])[0]),
        n_params_dense=int(space.n_params_dense),
    )


def added_biases(network: nn.Module, dense: nn.Module) -> tuple[str, ...]:
    """Return the layers of the small ``network`` that have a bias where those of the ``dense`` one have none."""
    added = sorted(network.state_dict().keys() - dense.state_dict().keys())
    return tuple(name.removesuffix(".bias") for name in added if name.endswith(".bias"))


def save_artefact(path: str | Path, network: nn.Module, description: Description, *, is_copy: bool = False) -> Path:
    """Write the weights of the small ``network`` and its ``description`` to the folder ``path``, all or nothing.

    An artefact that is already there is replaced, unless other files lie in its folder. ``network`` is not changed.

    Args:
        path: The folder.
        network: Its weights are written.
        description: Of the network.
        is_copy: Whether it is an export of an artefact, which :func:`is_copy` tells from one that is nowhere else.

    Raises:
        ArtefactError: ``path`` exists and is no artefact or holds more than one, or cannot be written.
    """
    path = Path(path)
    check_replaceable(path)
    # Tied tensors are written once per name: safetensors refuses shared memory, and a copy loads the same.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    text = json.dumps(description.model_dump(mode="json", by_alias=True), indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            folder.chmod(0o755)
            save_file(tensors, folder / WEIGHTS_FILE, _COPY_MARK if is_copy else None)
            (folder / DESCRIPTION_FILE).write_text(text, encoding="utf-8")
            for written in folder.iterdir():
                written.chmod(0o644)  # safetensors writes for the owner alone
                _flush(written)
            _put_in_place(folder, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"artefact {path} cannot be written: {error}; choose a folder that is writable") from error
    return path


def is_copy(path: Path) -> bool:
    """Return whether the artefact in the folder ``path`` is an export of another one."""
    try:
        with safe_open(path / WEIGHTS_FILE, framework="pt") as weights:
            return bool(_COPY_MARK.items() <= (weights.metadata() or {}).items())
    except (OSError, SafetensorError):
        return False


def check_replaceable(path: Path) -> None:
    """Check that an artefact may be written to ``path``.

    Raises:
        ArtefactError: ``path`` exists and is no artefact, or holds more than the two files of one.
    """
    if path.exists() and not (path / DESCRIPTION_FILE).is_file():
        raise ArtefactError(f"an artefact replaces nothing but an artefact, but {path} is something else; name another")
    try:
        others = sorted({entry.name for entry in path.iterdir()} - _FILES) if path.exists() else []
    except OSError as error:
        raise ArtefactError(f"artefact {path} cannot be written: {error}; choose a folder that is writable") from error
    if others:
        shown = ", ".join(others[:_MOST_SHOWN]) + (", ..." if len(others) > _MOST_SHOWN else "")
        raise ArtefactError(
            f"an artefact replaces nothing but an artefact, which is {WEIGHTS_FILE} and {DESCRIPTION_FILE}, but {path} "
            f"holds {len(others)} more: {shown}; name another folder, or move these away"
        )


def read_description(path: str | Path) -> Description:
    """Return the description of the artefact in the folder ``path``.

    Raises:
        ArtefactError: There is none, or none yet; it is damaged, or a newer evoprune wrote it.
    """
    path = Path(path)
    file = path / DESCRIPTION_FILE
    if not file.is_file():
        _refuse_unfinished(path)
        hint = f"; did you mean {path / 'best'}?" if (path / "best" / DESCRIPTION_FILE).is_file() else ""
        raise ArtefactError(
            f"an artefact is a folder with {WEIGHTS_FILE} and {DESCRIPTION_FILE}, but {path} is not{hint}"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{file} cannot be read as JSON ({error}); it is damaged, restore the artefact") from error
    if not isinstance(content, Mapping) or content.get("format") != "evoprune-artefact":
        raise ArtefactError(f"{file} was not written by evoprune; name the folder of an artefact")
    if content.get("schema") != SCHEMA:
        raise ArtefactError(
            f"{file} must have schema {SCHEMA}, but has {content.get('schema')!r}; use the evoprune that wrote it"
        )
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise ArtefactError(f"{file} is damaged: {place}: {problem['msg']}; restore the artefact") from None


def _refuse_unfinished(path: Path) -> None:
    """Say what to do where ``path``, which is no artefact, is a run or the place of its network.

    Raises:
        ArtefactError: It is, and the run has no network.
    """
    folder = path.parent if path.name == RunDirectory(path).best_path.name else path
    run = RunDirectory(folder)
    if run_around(folder) == folder.resolve() and not (run.best_path / DESCRIPTION_FILE).is_file():
        raise ArtefactError(
            f"a run has a network once its search has ended, but {run.path} has none yet; continue it with "
            f"`{resume_command(run.path)}`"
        )


def load(path: str | Path, model: nn.Module | None = None, *, trust_factory: bool = False) -> nn.Module:
    """Return the small network of the artefact in the folder ``path``, on the CPU and in eval mode.

    The dense structure is built, its space traced again, the recorded channels are cut and the weights loaded strictly.
    No pickle is read, and networks of evoprune, torchvision and timm are built without any code of the artefact. One of
    ``package.module:factory`` calls what the artefact names, which may be anything: it is refused without
    ``trust_factory``, unless the artefact lies in a run directory that was started with the same factory and keywords.
    A run directory can be copied, with its artefacts, as anything else: open those of people you trust.

    Args:
        path: Folder of an artefact, such as ``RUN/best``.
        model: The dense network, for an artefact whose network was given as a Python object; it is not changed.
        trust_factory: Whether a ``package.module:factory`` that the artefact names may be imported and called.

    Raises:
        ArtefactError: The artefact is missing or damaged, needs ``model`` or ``trust_factory``, or does not fit the
            network.
        OptionError: The network that it names can no longer be built, or an argument is of another kind.
    """
    path = as_path(path, "path")
    if model is not None and not isinstance(model, nn.Module):
        raise OptionError(
            f"`model` must be the dense network, a torch.nn.Module, but got {model!r}; leave it out for a network that "
            "was given by name"
        )
    description = read_description(path)
    is_trusted = trust_factory or _is_of_its_run(path, description.model)
    network = rebuild_structure(description, model, place=str(path), trust_factory=is_trusted)
    try:
        tensors = load_file(path / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{path / WEIGHTS_FILE} cannot be read ({error}); restore the artefact") from error
    try:
        for layer in description.added_biases:
            bias = nn.Parameter(torch.empty_like(tensors[f"{layer}.bias"]))
            network.get_submodule(layer).register_parameter("bias", bias)
        network.load_state_dict(tensors, strict=True)
    except (RuntimeError, KeyError, AttributeError) as error:
        raise ArtefactError(f"{path / WEIGHTS_FILE} does not fit the network in {DESCRIPTION_FILE}: {error}") from error
    return network.eval()


def rebuild_structure(
    description: Description,
    model: nn.Module | None = None,
    place: str = "the artefact",
    *,
    trust_factory: bool = False,
) -> nn.Module:
    """Return the small network that ``description`` stands for, with meaningless weights.

    Raises:
        ArtefactError: ``model`` or ``trust_factory`` is needed, or the space is another than the recorded one.
        OptionError: The network can no longer be built.
    """
    record = description.model
    if model is None:
        if record.name is None:
            raise ArtefactError(
                f"{place} belongs to a network that was given as a Python object, which its name alone cannot rebuild; "
                "pass the dense network: `evoprune.load(path, model=...)`"
            )
        foreign = None if trust_factory else foreign_code(record.name, record.args)
        if foreign is not None:
            raise ArtefactError(
                f"an artefact is opened without running code of others, but {place} names {foreign}; if you trust who "
                "wrote it, say so: `--trust-factory`, or `trust_factory=True` from Python; or pass the dense network: "
                "`evoprune.load(path, model=...)`"
            )
        model = build_model(record.name, record.n_classes, record.args, record.input_shape)
    # A space with the recorded fingerprint was verified when the run began; any other is verified now.
    space = description.space.trace(model, record.input_shape, verify=False)
    if space.fingerprint != description.space.fingerprint:
        space = description.space.trace(model, record.input_shape)
    genome = _genome_of(description, space, place)
    return prune_model(model, space, genome)


def example_input(model: nn.Module, input_shape: tuple[int, int, int], n: int = 2) -> torch.Tensor:
    """Return ``(n, C, H, W)`` zeros on the device and in the dtype of the parameters of ``model``."""
    first = next(iter(model.parameters()), torch.empty(0))
    return torch.zeros((n, *input_shape), device=first.device, dtype=first.dtype)


def _is_of_its_run(path: Path, record: ModelRecord) -> bool:
    """Return whether the artefact ``path`` lies in a run directory that was started with the network of ``record``."""
    run = run_around(path)
    if run is None:
        return False
    try:
        options = RunDirectory.open_existing(run).read_config()["options"]
    except RunDirectoryError:
        return False
    return bool(options.get("model") == record.name and options.get("model_args") == record.args)


def _genome_of(description: Description, space: SearchSpace, place: str) -> BoolArray:
    """Return the recorded genome, rebuilt by group names, so that a harmless change of gene order does not matter."""
    recorded = description.genome
    names = {group.name for group in space.groups}
    if names != set(recorded.kept_channels) or space.n_genes != recorded.n_genes:
        raise ArtefactError(
            f"{place} records {recorded.n_genes} genes in {len(recorded.kept_channels)} groups, but the network has "
            f"{space.n_genes} in {len(names)}; it belongs to another network"
        )
    genome = np.zeros(space.n_genes, np.bool_)
    for group in space.groups:
        kept = np.asarray(recorded.kept_channels[group.name], np.int64)
        if kept.size and not (kept.min() >= 0 and kept.max() < group.size):
            raise ArtefactError(
                f"{place} keeps channel {int(kept.max())} of group {group.name!r}, which has {group.size}; "
                "it belongs to another network"
            )
        genome[group.start + kept] = True
    if genome_digest(genome) != recorded.digest and space.fingerprint == description.space.fingerprint:
        raise ArtefactError(f"the kept channels in {place} do not have the recorded digest; restore the artefact")
    return genome


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(folder: Path, path: Path) -> None:
    """Rename ``folder`` to ``path``; an older artefact is moved aside first, since folders cannot be swapped."""
    if path.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
        path.rename(aside / "artefact")
        folder.rename(path)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        folder.rename(path)
