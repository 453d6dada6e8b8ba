"""Copies of an artefact for other programs, each checked against the network it was made from."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from evoprune.artefact import DESCRIPTION_FILE, WEIGHTS_FILE, is_copy, load, read_description, save_artefact
from evoprune.run_directory import as_path, is_run_own, run_around
from search_spaces.errors import EvoPruneError, OptionError, UnknownNameError

ONNX_FILE = "model.onnx"
PT2_FILE = "model.pt2"
_MARK, _MARK_VALUE = "evoprune", "export"  # in files that are exported, which no reader of networks looks at
_BATCH = "batch"
_TOLERANCE = 1e-4  # relative to the largest logit; exporters fold batch norms, which moves the last digits


class ExportError(EvoPruneError, RuntimeError):
    """A network could not be exported, or the exported file computes something else."""


@dataclass(frozen=True)
class ExportedFile:
    """One file that was written.

    Attributes:
        format: A key of ``FORMATS``.
        path: The file.
        n_bytes: Its size.
        max_difference: Largest difference of its logits to those of the network, relative to the largest logit; None
            for files that hold no computation.
    """

    format: str
    path: Path
    n_bytes: int
    max_difference: float | None = None


def export(
    artefact: str | Path,
    out: str | Path,
    formats: Sequence[str] = ("safetensors",),
    model: nn.Module | None = None,
    *,
    trust_factory: bool = False,
) -> list[ExportedFile]:
    """Write the network of ``artefact`` to the folder ``out`` in each of ``formats`` and return what was written.

    Args:
        artefact: Folder of an artefact, or of a run, whose ``best`` is taken.
        out: Folder to write to; made where it does not exist.
        formats: Keys of ``FORMATS``.
        model: The dense network, where the artefact was made from a Python object.
        trust_factory: As for :func:`evoprune.load`.

    Raises:
        ArtefactError: The artefact is missing, damaged or of another network, or names a factory that is not trusted.
        UnknownNameError: An unknown format.
        OptionError: A format needs a package that is not installed, or ``out`` is a run directory, is or lies in an
            artefact that is not an earlier export or a place of a run's own, or cannot be written.
        ExportError: An exporter failed, or its file computes something else.
    """
    artefact, out = resolve_artefact(as_path(artefact, "artefact")), as_path(out, "out")
    check_formats(formats)
    network = load(artefact, model, trust_factory=trust_factory)
    shape = read_description(artefact).model.input_shape
    if out.resolve() == artefact.resolve():
        raise OptionError(
            f"an export must not overwrite its source, but --out is the artefact {out}; name another folder"
        )
    check_export_folder(out, formats)
    try:
        out.mkdir(parents=True, exist_ok=True)
        return [file for name in dict.fromkeys(formats) for file in FORMATS[name](artefact, network, shape, out)]
    except OSError as error:
        raise OptionError(
            f"{str(out)!r} must be a writable folder, but {error.strerror}; choose another --out"
        ) from error


def check_export_folder(out: Path, formats: Sequence[str] = ("safetensors",)) -> None:
    """Check that an export to the folder ``out`` in ``formats`` replaces nothing but an earlier export.

    Raises:
        OptionError: ``out`` is a run directory, is or lies in another artefact or a place of a run's own, or holds
            weights or a file of one of ``formats`` from elsewhere.
    """
    if run_around(out) == out.resolve():
        raise OptionError(
            f"an export needs a folder of its own, since a run directory with an artefact in it would pass for the "
            f"artefact, but --out is the run {out}; name another folder, such as {out / 'export'}"
        )
    if is_run_own(out):
        raise OptionError(
            f"an export must not take the place of what a run holds of its own, but --out is {out}; name another folder"
        )
    for folder in (out.resolve(), *out.resolve().parents):
        if (folder / DESCRIPTION_FILE).is_file() and not is_copy(folder):
            raise OptionError(
                f"an export replaces nothing but an earlier export, but {folder} is an artefact that may be nowhere "
                "else; name another folder"
            )
    if (out / WEIGHTS_FILE).exists() and not is_copy(out):
        raise OptionError(
            f"an export replaces nothing but an earlier export, but {out / WEIGHTS_FILE} is something else; name "
            "another folder"
        )
    for name, (file, is_export) in _MARKED_FILES.items():
        if name in formats and (out / file).exists() and not is_export(out / file):
            raise OptionError(
                f"an export replaces nothing but an earlier export, but {out / file} bears no mark of one; name "
                "another folder, or move the file away"
            )


def check_formats(formats: Sequence[str]) -> None:
    """Check that networks can be written in each of ``formats`` here.

    Raises:
        UnknownNameError: An unknown format.
        OptionError: There is no format, or one name in place of a sequence; or one needs a package that is not
            installed.
    """
    if isinstance(formats, str) or not formats:
        raise OptionError(
            f"`formats` must be a sequence of one or more names of {', '.join(FORMATS)}, but got {formats!r}; pass for "
            'instance ["onnx"]'
        )
    for name in formats:
        if name not in FORMATS:
            raise UnknownNameError("export format", name, FORMATS)
    for name in formats:
        _check_packages(name)


def resolve_artefact(path: Path) -> Path:
    """Return ``path``, or its ``best`` where ``path`` is a run directory."""
    is_run = not (path / DESCRIPTION_FILE).is_file() and (path / "best" / DESCRIPTION_FILE).is_file()
    return path / "best" if is_run else path


def default_export_folder(path: Path) -> Path:
    """Return where the network of ``path`` is exported to by default: into a run directory, or beside an artefact."""
    if not (path / DESCRIPTION_FILE).is_file():
        return path / "export"
    named = path if path.name not in ("", "..") else path.resolve()
    return named.with_name(f"export-{named.name}")


def finetuned_networks(run: Path) -> list[Path]:
    """Return the folders of the finetuned networks in the run directory ``run``; none of a folder that is no run."""
    if resolve_artefact(run) == run:
        return []
    return sorted(file.parent for file in run.glob(f"finetuned*/{DESCRIPTION_FILE}"))


def _export_safetensors(artefact: Path, network: nn.Module, _: tuple[int, ...], out: Path) -> list[ExportedFile]:
    written = []
    with tempfile.TemporaryDirectory(prefix=".evoprune-", dir=out) as staging:  # a name that is nobody's
        folder = save_artefact(Path(staging) / "artefact", network, read_description(artefact), is_copy=True)
        for name in (WEIGHTS_FILE, DESCRIPTION_FILE):
            (folder / name).replace(out / name)
            written.append(ExportedFile("safetensors", out / name, (out / name).stat().st_size))
    return written


def _export_onnx(_: Path, network: nn.Module, shape: tuple[int, ...], out: Path) -> list[ExportedFile]:
    import onnxruntime

    def write(path: Path) -> float:
        with _quiet(), _failures("ONNX"):
            program = torch.onnx.export(
                network,
                (torch.zeros(2, *shape),),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim(_BATCH)},),
                dynamo=True,
                verbose=False,
            )
            if program is None:  # what the exporter of old, which is not asked, returns
                raise ExportError("ONNX cannot export this network: torch.onnx.export returned nothing")
            program.model.metadata_props[_MARK] = _MARK_VALUE
            program.save(path, external_data=False)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def run(images: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

        return _checked(network, run, shape, out / ONNX_FILE)

    return [_written("onnx", out / ONNX_FILE, write)]


def _export_pt2(_: Path, network: nn.Module, shape: tuple[int, ...], out: Path) -> list[ExportedFile]:
    def write(path: Path) -> float:
        with _quiet(), _failures("torch.export"):
            # Batches of 0 and 1 are special to torch.export: an example of two leaves the dimension free.
            program = torch.export.export(
                network, (torch.zeros(2, *shape),), dynamic_shapes=({0: torch.export.Dim(_BATCH)},)
            )
            torch.export.save(program, path, extra_files={_MARK: _MARK_VALUE})
            loaded = torch.export.load(path).module()
        return _checked(network, loaded, shape, out / PT2_FILE)

    return [_written("pt2", out / PT2_FILE, write)]


def _written(name: str, path: Path, write: Callable[[Path], float]) -> ExportedFile:
    """Replace ``path`` by what ``write`` writes and has checked; where that fails, ``path`` is left as it is."""
    with tempfile.TemporaryDirectory(prefix=".evoprune-", dir=path.parent) as staging:  # a name that is nobody's
        file = Path(staging) / path.name
        difference = write(file)
        file.replace(path)
    return ExportedFile(name, path, path.stat().st_size, difference)


def _is_onnx_export(path: Path) -> bool:
    """Return whether the file ``path`` is an ONNX model that was exported here; False where it cannot be read."""
    import onnx

    try:
        properties = onnx.load(path, load_external_data=False).metadata_props
    except Exception:  # whatever a file of another kind makes the parser raise
        return False
    return any(each.key == _MARK and each.value == _MARK_VALUE for each in properties)


def _is_pt2_export(path: Path) -> bool:
    """Return whether the file ``path`` is a ``.pt2`` archive that was exported here; False where it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(f"/extra/{_MARK}") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


#: Files of one format alone, and how an earlier export is told from a file of the user's.
_MARKED_FILES: Mapping[str, tuple[str, Callable[[Path], bool]]] = {
    "onnx": (ONNX_FILE, _is_onnx_export),
    "pt2": (PT2_FILE, _is_pt2_export),
}
FORMATS: Mapping[str, Callable[[Path, nn.Module, tuple[int, ...], Path], list[ExportedFile]]] = {
    "onnx": _export_onnx,
    "pt2": _export_pt2,
    "safetensors": _export_safetensors,
}
#: What each format is, for people.
FORMAT_DESCRIPTIONS: Mapping[str, str] = {
    "onnx": "for ONNX Runtime and others (extra `onnx`), with any batch size",
    "pt2": "a program of torch.export, with any batch size",
    "safetensors": "weights and description, for evoprune.load",
}
_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime")}


def _check_packages(name: str) -> None:
    missing = [package for package in _PACKAGES.get(name, ()) if importlib.util.find_spec(package) is None]
    if missing:
        raise OptionError(
            f"export to {name} needs the packages {', '.join(missing)}, which are not installed; "
            f"pip install 'evoprune[{name}]'"
        )


def _checked(network: nn.Module, exported: Callable[[Tensor], Tensor], shape: tuple[int, ...], path: Path) -> float:
    """Return the largest relative difference over batches of 1, 2 and 5 images.

    Raises:
        ExportError: It is larger than the tolerance.
    """
    generator = torch.Generator().manual_seed(0)
    difference = 0.0
    for n in (1, 2, 5):
        images = torch.randn(n, *shape, generator=generator)
        with torch.inference_mode():
            expected, found = network(images), exported(images)
        scale = max(float(expected.abs().max()), 1e-12)
        difference = max(difference, float((expected - found).abs().max()) / scale)
    if not difference <= _TOLERANCE:
        raise ExportError(
            f"an exported network must compute what it was made from, but the logits of {path} differ by "
            f"{difference:.2g} of the largest (at most {_TOLERANCE:g}); it was not written, please report the network"
        )
    return difference


@contextmanager
def _failures(exporter: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EvoPruneError):
        raise
    except Exception as error:  # the exporters raise whatever their parts raise
        first_line = (str(error).splitlines() or [""])[0]
        raise ExportError(f"{exporter} cannot export this network: {type(error).__name__}: {first_line}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporters' chatter, which is about their own future and not about the user's network."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
