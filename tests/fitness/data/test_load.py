from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from fitness.data import DATA, ImageData, StreamedSplit, load_data
from fitness.data.torchvision_sets import TORCHVISION_SETS
from search_spaces.errors import DataError, OptionError, UnknownNameError

SPLIT_SIZES = {"train": 12, "val": 6, "test": 4}


def npz_arrays(tail: tuple[int, ...] = (8, 8, 3)) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    arrays: dict[str, Any] = {}
    for split, n in SPLIT_SIZES.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, *tail), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n, dtype=np.uint8) % 3)[:, None]
    return arrays


def saved(folder: Path, arrays: dict[str, Any]) -> str:
    np.savez(folder / "d.npz", **arrays)
    return f"npz:{folder / 'd.npz'}"


def image_tree(folder: Path, splits: dict[str, int], size: tuple[int, int] = (20, 16)) -> str:
    """Per split so many images of each of two classes: cats are brighter than 128, dogs darker."""
    for split, n in splits.items():
        for name, low in (("cat", 130), ("dog", 10)):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", size, (low + i, low, low)).save(folder / split / name / f"{i:03}.png")
    return f"imagefolder:{folder}"


def splits_of(data: ImageData) -> list[Any]:
    return [data.train, data.val, data.test]


def test_digits_are_split_60_20_20_whatever_the_callers_randomness() -> None:
    data = load_data("digits")
    np.testing.assert_allclose([len(split) for split in splits_of(data)], 1797 * np.array((0.6, 0.2, 0.2)), atol=3)
    assert sum(len(split) for split in splits_of(data)) == 1797
    assert data.input_shape == (3, 32, 32)
    assert data.n_classes == 10
    assert not data.may_flip
    batch = data.train.take(np.arange(5))
    assert batch.images.dtype == torch.uint8
    assert torch.equal(batch.images[:, 0], batch.images[:, 2])
    assert load_data("digits").content_hash == data.content_hash
    assert load_data("digits", seed=1).content_hash != data.content_hash
    assert load_data("digits", std=(1, 1, 1)).content_hash != data.content_hash


def test_splits_of_digits_share_no_image() -> None:
    rows = [
        split.take(np.arange(len(split))).images[:, 0].flatten(1).numpy() for split in splits_of(load_data("digits"))
    ]
    sets = [{row.tobytes() for row in part} for part in rows]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]


@pytest.mark.parametrize("tail", [(8, 8, 3), (8, 8), (8, 8, 1)])
def test_npz_keeps_pixels_and_labels(tmp_path: Path, tail: tuple[int, ...]) -> None:
    arrays = npz_arrays(tail)
    data = load_data(saved(tmp_path, arrays))
    assert data.input_shape == (3, 8, 8)
    assert data.n_classes == 3
    for name, split in zip(SPLIT_SIZES, splits_of(data), strict=True):
        batch = split.take(np.arange(len(split)))
        expected = np.broadcast_to(
            arrays[f"{name}_images"].reshape(-1, 8, 8, tail[2] if len(tail) > 2 else 1), (len(split), 8, 8, 3)
        )
        assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), expected)
        assert batch.labels.tolist() == arrays[f"{name}_labels"][:, 0].tolist()
        assert split.labels.dtype == torch.int64


def test_npz_is_resized_and_hashed_by_content(tmp_path: Path) -> None:
    spec = saved(tmp_path, npz_arrays())
    assert load_data(spec, input_shape=(3, 16, 12)).input_shape == (3, 16, 12)
    first = load_data(spec).content_hash
    (tmp_path / "d.npz").rename(tmp_path / "e.npz")
    assert load_data(f"npz:{tmp_path / 'e.npz'}").content_hash == first
    other = npz_arrays()
    other["test_labels"][0] += 1
    assert load_data(saved(tmp_path, other)).content_hash != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_images": None}, "must hold val_images, but it holds"),
        ({"train_images": np.zeros((12, 8, 8, 3), np.float32)}, "train_images must be uint8, but got float32"),
        ({"train_images": np.zeros((12, 8, 8, 4), np.uint8)}, r"must be \(n, H, W\) or \(n, H, W, 3\)"),
        ({"val_images": np.zeros((6, 9, 8, 3), np.uint8)}, "all images must have one shape"),
        ({"val_images": np.zeros((0, 8, 8, 3), np.uint8)}, "val_images must hold images"),
        ({"val_labels": np.zeros(5, np.uint8)}, "val must have a label per image, but got 6 and 5"),
        ({"val_labels": np.zeros((6, 2), np.uint8)}, r"val_labels must hold one class per image, \(n,\) or \(n, 1\)"),
        ({"test_labels": np.zeros(4)}, "test_labels must be integers, but got float64"),
        ({"test_labels": np.full(4, -1)}, "test_labels must be 0 or more, but one is -1"),
        ({"test_labels": np.full(4, 3)}, r"test_labels must be classes of train_labels \(0 to 2\), but one is 3"),
        ({"train_labels": np.zeros(12, np.uint8)}, "must hold at least two classes"),
        ({"train_images": np.full(12, None)}, "no complete .npz file of plain arrays"),
    ],
)
def test_npz_that_breaks_its_layout(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arrays = {name: value for name, value in (npz_arrays() | changes).items() if value is not None}
    with pytest.raises(DataError, match=message):
        load_data(saved(tmp_path, arrays))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_npz_that_is_truncated(tmp_path: Path, share: float) -> None:
    spec = saved(tmp_path, npz_arrays())
    content = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"no complete \.npz file"):
        load_data(spec)


def test_npz_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist or is not a file"):
        load_data(f"npz:{tmp_path / 'absent.npz'}")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(DataError, match="a single array"):
        load_data(f"npz:{tmp_path / 'single.npy'}")


def test_imagefolder_streams_in_order(tmp_path: Path) -> None:
    data = load_data(image_tree(tmp_path, {"train": 4, "val": 2, "test": 3}), input_shape=(3, 8, 10))
    assert data.input_shape == (3, 8, 10)
    assert [len(split) for split in splits_of(data)] == [8, 4, 6]
    assert isinstance(data.train, StreamedSplit)
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    batches = list(data.train.batches(3))
    assert [len(batch) for batch in batches] == [3, 3, 2]
    images = torch.cat([batch.images for batch in batches])
    assert images.shape == (8, 3, 8, 10)
    assert images[:, 0, 4, 5].tolist() == [130, 131, 132, 133, 10, 11, 12, 13]
    taken = data.train.take(np.array([6, 1, 1]))
    assert torch.equal(taken.images, images[[6, 1, 1]])
    assert taken.labels.tolist() == [1, 0, 0]
    assert len(data.train.take(np.array([], np.int64))) == 0


def test_imagefolder_cuts_the_centre(tmp_path: Path) -> None:
    spec = image_tree(tmp_path, {"train": 1, "val": 1, "test": 1})
    image = Image.new("RGB", (30, 10), (255, 0, 0))
    image.paste((0, 255, 0), (10, 0, 20, 10))
    image.save(tmp_path / "train" / "cat" / "000.png")
    data = load_data(spec, input_shape=(3, 10, 10))
    pixels = data.train.take(np.array([0])).images[0]
    assert torch.equal(pixels, torch.tensor([0, 255, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 10, 10))


def test_imagefolder_takes_absent_splits_off_train(tmp_path: Path) -> None:
    spec = image_tree(tmp_path, {"train": 20})
    first, again = load_data(spec), load_data(spec)
    assert [len(split) for split in splits_of(first)] == [32, 4, 4]
    paths = [set(split.paths) for split in splits_of(first)]
    assert len(set.union(*paths)) == 40
    assert paths == [set(split.paths) for split in splits_of(again)]
    assert first.content_hash == again.content_hash
    assert first.input_shape == (3, 224, 224)
    Image.new("RGB", (90, 90)).save(tmp_path / "train" / "cat" / "000.png")
    assert load_data(spec).content_hash != first.content_hash


def test_imagefolder_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist or is not a folder"):
        load_data(f"imagefolder:{tmp_path / 'absent'}")
    with pytest.raises(DataError, match="at least two classes, but found none"):
        load_data(f"imagefolder:{tmp_path}")
    spec = image_tree(tmp_path, {"train": 3})
    with pytest.raises(DataError, match="no folder 'val', and classes of train have too few images"):
        load_data(spec)
    (tmp_path / "val" / "horse").mkdir(parents=True)
    with pytest.raises(DataError, match="classes of train only, but found horse"):
        load_data(spec)
    (tmp_path / "val" / "horse").rename(tmp_path / "val" / "cat")
    with pytest.raises(DataError, match="val must hold images"):
        load_data(spec)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(DataError, match="empty must hold images"):
        load_data(spec)


def test_imagefolder_names_a_file_that_cannot_be_decoded(tmp_path: Path) -> None:
    spec = image_tree(tmp_path, {"train": 1, "val": 1, "test": 1})
    (tmp_path / "train" / "dog" / "000.png").write_bytes(b"no image")
    data = load_data(spec)
    with pytest.raises(DataError, match=r"000\.png could not be decoded as an image"):
        data.train.take(np.array([1]))


def test_imagefolder_names_a_file_with_a_broken_chunk(tmp_path: Path) -> None:
    spec = image_tree(tmp_path, {"train": 1, "val": 1, "test": 1})
    path = tmp_path / "train" / "dog" / "000.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    second = content.index(b"IDAT", content.index(b"IDAT") + 1)
    content[second : second + 4] = bytes((0, 255, 1, 2))
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"000\.png could not be decoded as an image"):
        load_data(spec).train.take(np.array([1]))


class FakeSet:
    """Stands in for every class of torchvision.datasets: 40 training and 8 test images, root untouched."""

    def __init__(self, root: str, download: bool, train: bool = True, split: str = "train") -> None:
        print("Downloading to", root)
        assert download
        n = 40 if train and split == "train" else 8
        values = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        self.data: Any = np.repeat(values[..., None], 3, axis=3)
        self.targets: Any = [i % 4 for i in range(n)]


class FakeGrey(FakeSet):
    """Grey images as one tensor, like Fashion-MNIST."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.data, self.targets = torch.from_numpy(self.data[..., 0]), torch.tensor(self.targets)


class FakeChannelsFirst(FakeSet):
    """Channels first and labels under another name, like SVHN."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.data, self.labels = self.data.transpose(0, 3, 1, 2), np.array(self.targets)


@pytest.mark.parametrize(
    ("name", "fake"),
    [("cifar10", FakeSet), ("cifar100", FakeSet), ("svhn", FakeChannelsFirst), ("fashion-mnist", FakeGrey)],
)
def test_torchvision_sets(
    name: str, fake: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torchvision.datasets, TORCHVISION_SETS[name].class_name, fake)
    data = load_data(name, tmp_path / "root")
    assert [len(split) for split in splits_of(data)] == [36, 4, 8]
    assert data.input_shape == (3, 32, 32)
    assert data.test.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert (tmp_path / "root").is_dir()
    assert capsys.readouterr().out == ""


def test_default_root_is_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeSet)
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path))
    load_data("cifar10")
    assert (tmp_path / "data").is_dir()


def test_failed_download_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **keywords: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(DataError, match=r"cifar10 could not be downloaded .*no route to host.*--data digits"):
        load_data("cifar10", tmp_path)


@pytest.mark.parametrize(("spec", "near"), [("digit", "digits"), ("cifar01", "cifar10"), ("npy:x.npy", "npz:PATH")])
def test_unknown_data_suggest_the_nearest(spec: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown data .*did you mean '{near}'"):
        load_data(spec)


def test_the_message_about_data_holds_what_was_given() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown data 'npy:x\.npy'"):
        load_data("npy:x.npy")
    with pytest.raises(OptionError, match="`npz:` and `imagefolder:` only, but got 'digits:foo'; write 'digits'"):
        load_data("digits:foo")


@pytest.mark.parametrize("spec", ["npz:", "npz", "imagefolder:"])
def test_path_must_follow(spec: str) -> None:
    with pytest.raises(OptionError, match="a path must follow"):
        load_data(spec)


@pytest.mark.parametrize(
    "keywords",
    [{"input_shape": (1, 32, 32)}, {"input_shape": (3, 0, 32)}, {"std": (1, 0, 1)}, {"mean": (0, float("nan"), 0)}],
)
def test_shape_and_normalisation_are_checked(keywords: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="but got"):
        load_data("digits", **keywords)


def test_every_torchvision_set_is_listed() -> None:
    assert set(TORCHVISION_SETS) <= set(DATA)
    assert "torchvision" in sys.modules
