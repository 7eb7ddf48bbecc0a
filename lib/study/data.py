"""Data sets as in-memory tensors: uint8 images and labels on the device, batches with pixels in [0, 1].

``digits`` (scikit-learn's, enlarged) is embedded and needs no file. The others are read from <root>/<name>.npz
(uint8 arrays x_train, y_train, x_test, y_test), root = $WELLCOND_DATA or ./data of the project; a missing file is
downloaded by torchvision and written in that form. Splits and subsets are chosen by a hash of the images, so any copy
of a data set, in any order, gives the same ones. Data of your own are a function, "package.module:factory", that
returns such arrays, or a folder with train/ and test/, in each a folder of images for each class.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from study import paths
from study.importing import FORM, factory_named, said
from wellcond.errors import invalid, unknown

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Images:
    """Images (N, C, H, W), uint8, and labels (N,), int64, on one device."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        """Raise ValueError unless images and labels are of these shapes and types, as many of one as of the other."""
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise invalid("images", f"{self.images.dtype} {tuple(self.images.shape)}", "torch.uint8 (N, C, H, W)")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            wanted = f"torch.int64 ({len(self.images)},), class numbers"
            raise invalid("labels", f"{self.labels.dtype} {tuple(self.labels.shape)}", wanted)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Images:
        return Images(self.images.to(device), self.labels.to(device))

    def first(self, n: int | None) -> Images:
        """The first n images (all if n is None): a fixed subset, since the order is that of the hash."""
        return self if n is None else Images(self.images[:n], self.labels[:n])

    def halved(self) -> Images:
        """Means over 2 x 2 pixels."""
        means = F.avg_pool2d(self.pixels(slice(None)), 2)
        return Images(means.mul(255).round().to(torch.uint8), self.labels)

    def pixels(self, index: Tensor | slice) -> Tensor:
        """Float pixels in [0, 1], contiguous: a network which wants another layout makes it itself."""
        return self.images[index].contiguous().to(torch.get_default_dtype()).div_(255)

    def chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order, in batches of `size`; the last one may be shorter."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.pixels(part), self.labels[part]

    def batches(self, size: int, *, seed: int, epoch: int, augment: str = "none") -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of training batches, shuffled and augmented by (seed, epoch) alone, on every device alike."""
        if augment not in AUGMENTATIONS:
            raise unknown("augment", augment, AUGMENTATIONS)
        generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        order = torch.randperm(len(self), generator=generator).to(self.labels.device)
        for index in torch.split(order, size):
            yield AUGMENTATIONS[augment](self.pixels(index), generator), self.labels[index]


def _crop_flip(x: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Random crops of the zero-padded images and horizontal flips with probability 1/2, as one gather."""
    b, _, h, w = x.shape
    device = x.device
    dy, dx = torch.randint(2 * pad + 1, (2, b, 1), generator=generator).to(device)
    flip = torch.randint(2, (b, 1), generator=generator, dtype=torch.bool).to(device)
    rows = dy + torch.arange(h, device=device)  # (b, h)
    columns = torch.arange(w, device=device).expand(b, w)
    columns = dx + torch.where(flip, w - 1 - columns, columns)
    padded = F.pad(x, (pad, pad, pad, pad))
    index = torch.arange(b, device=device)[:, None, None]
    moved = padded[index, :, rows[:, :, None], columns[:, None, :]]  # (b, h, w, c)
    return moved.permute(0, 3, 1, 2).contiguous()


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "none": lambda x, generator: x,
    "crop_flip": _crop_flip,
}


@dataclass(frozen=True)
class Data:
    """A data set split into training, validation and test images; `sha256` identifies its content, not its order."""

    name: str
    train: Images
    validation: Images
    test: Images
    num_classes: int
    sha256: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        c, h, w = self.test.images.shape[1:]
        return c, h, w

    def to(self, device: torch.device | str) -> Data:
        return replace(
            self, train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device)
        )


@dataclass(frozen=True)
class Source:
    """Where a data set comes from: its classes and channels, its content hash, and how it is read or downloaded."""

    num_classes: int
    channels: int = 3
    arrays: Callable[[], dict[str, Bytes]] | None = None  # embedded
    torchvision: str = ""  # class name in torchvision.datasets
    sha256: str = ""


def _digits(size: int, channels: int) -> dict[str, Bytes]:
    """scikit-learn's 1,797 8 x 8 digits, enlarged bilinearly; the last 360 in hash order are the test set."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    large = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    x = (255 * large).round().to(torch.uint8).expand(-1, channels, -1, -1).permute(0, 2, 3, 1).numpy()
    y = bunch.target.astype(np.uint8)
    order = _hash_order(x, y, 0)
    test, train = order[-360:], order[:-360]
    return {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}


DATASETS: dict[str, Source] = {
    "digits": Source(10, 1, arrays=lambda: _digits(28, 1)),
    "digits32": Source(10, 3, arrays=lambda: _digits(32, 3)),
    "mnist": Source(
        10, 1, torchvision="MNIST", sha256="9be47e5e19dad11e167732e7644f08cedf8a85d9efcb37e0ef9a75c0bf133b27"
    ),
    "cifar10": Source(
        10, 3, torchvision="CIFAR10", sha256="3fdc7a2bdbfd3628e23e5c9dcbe57ef43331b8d19eeb3b14c37f9d0c198e7e0f"
    ),
    "cifar100": Source(
        100, 3, torchvision="CIFAR100", sha256="63eea7eba5c80050b0052b0e794c1b197ba7da7eb518ecc8d29301149adb38fa"
    ),
}


def _hashes(x: Bytes, y: Bytes, seed: int) -> list[bytes]:
    """One 16-byte BLAKE2 hash per (image, label), keyed by the seed."""
    key = seed.to_bytes(8, "little", signed=True)
    return [
        hashlib.blake2b(image.tobytes() + label.tobytes(), digest_size=16, key=key).digest()
        for image, label in zip(x, y, strict=True)
    ]


def _hash_order(x: Bytes, y: Bytes, seed: int) -> NDArray[np.intp]:
    digests = _hashes(x, y, seed)
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.intp)


def _content_hash(arrays: dict[str, Bytes]) -> str:
    """SHA-256 over the sorted image hashes of both splits: the same for any order of the same images."""
    total = hashlib.sha256()
    for split in ("train", "test"):
        for digest in sorted(_hashes(arrays[f"x_{split}"], arrays[f"y_{split}"], 0)):
            total.update(digest)
    return total.hexdigest()


LARGEST = 2**30
"""Bytes that a data set may declare: an archive is refused before it is inflated."""

_UNREADABLE = (
    *(OSError, KeyError, ValueError, TypeError, EOFError, NotImplementedError, RuntimeError, struct.error, SyntaxError),
    *(zipfile.BadZipFile, zlib.error),
)


NAMES = ("x_train", "y_train", "x_test", "y_test")
"""The arrays of a data set, uint8: images (N, H, W) or (N, H, W, 1 or 3), and the numbers of their classes (N,)."""


def _check(arrays: Mapping[str, Any]) -> None:
    """Raise ValueError unless these are the arrays of a data set."""
    if any(getattr(arrays[name], "dtype", None) != np.uint8 for name in NAMES):
        raise ValueError("not uint8")
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)) or y.shape != x.shape[:1]:
            raise ValueError(f"{split}: shapes {x.shape} and {y.shape}, not (N, H, W[, 1 or 3]) and (N,)")
        if not len(x):
            raise ValueError(f"{split}: no images")


def source(name: str | Callable[[], Any]) -> Source:
    """Where data come from: a key of DATASETS, a factory or its name "package.module:factory", or a folder of images.

    The factory takes no arguments and returns the four arrays NAMES, in this order or in a mapping; classes are counted
    in the labels. Raises ValueError for a name that is none, or arrays that are none.
    """
    if callable(name):
        return _own(name.__name__, _arrays(name.__name__, name))
    if name in DATASETS:
        return DATASETS[name]
    if ":" in name:
        return _own(name, _named(name))
    if Path(name, "train").is_dir() and Path(name, "test").is_dir():
        return _own(name, _folder(Path(name)))
    raise unknown("dataset", name, [*DATASETS, FORM, "a folder with train/ and test/"])


def content(name: str) -> str:
    """The first 16 hex digits of the hash of data of your own, which a name does not identify; "" for DATASETS."""
    if name in DATASETS:
        return ""
    arrays = source(name).arrays
    assert arrays is not None
    return _content_hash(arrays())[:16]


def _own(name: str, arrays: dict[str, Bytes]) -> Source:
    try:
        _check(arrays)
    except (ValueError, KeyError) as error:
        raise invalid("dataset", name, f"uint8 arrays {', '.join(NAMES)} ({error})") from error
    classes = 1 + max(int(arrays[f"y_{split}"].max()) for split in ("train", "test"))
    return Source(classes, 1 if arrays["x_test"].ndim == 3 else arrays["x_test"].shape[3], arrays=lambda: arrays)


@functools.lru_cache(maxsize=2)
def _named(name: str) -> dict[str, Bytes]:
    return _arrays(name, factory_named("dataset", name, "arrays"))


def _arrays(name: str, factory: Callable[[], Any]) -> dict[str, Bytes]:
    try:
        made = factory()
        return {key: made[key] for key in NAMES} if isinstance(made, Mapping) else dict(zip(NAMES, made, strict=True))
    except Exception as error:  # it is not ours, and may raise anything
        raise invalid("dataset", name, f"a function that returns {', '.join(NAMES)} ({said(error)})") from error


@functools.lru_cache(maxsize=2)
def _folder(path: Path) -> dict[str, Bytes]:
    """Images in the folders of their classes, as torchvision reads them, all of one size."""
    from torchvision.datasets import ImageFolder

    arrays = {}
    try:
        for split in ("train", "test"):
            images = ImageFolder(path / split)
            arrays[f"x_{split}"] = np.stack([np.asarray(image, dtype=np.uint8) for image, _ in images])
            arrays[f"y_{split}"] = np.array(images.targets, dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise invalid(
            "dataset", str(path), f"a folder of images of one size, in folders by class ({said(error)})"
        ) from error
    return arrays


def _read(path: Path, expected: str) -> tuple[dict[str, Bytes], str]:
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
        if declared > LARGEST:
            raise ValueError(f"{declared:,} bytes, of at most {LARGEST:,}")
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in NAMES}
        _check(arrays)
        sha256 = _content_hash(arrays)
    except _UNREADABLE as error:
        raise invalid("file", str(path), f"a readable .npz with uint8 {', '.join(NAMES)} ({error})") from error
    if expected and sha256 != expected:
        raise invalid("sha256", sha256, f"{expected} for {path.name}; delete the file to fetch it again")
    return arrays, sha256


def _download(name: str, path: Path) -> None:
    """Fetch a data set with torchvision and write it, atomically, in the cache format."""
    import torchvision.datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = getattr(torchvision.datasets, DATASETS[name].torchvision)
    arrays: dict[str, Bytes] = {}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        try:
            for split in ("train", "test"):
                raw = dataset(folder, train=split == "train", download=True)
                arrays[f"x_{split}"] = np.asarray(raw.data, dtype=np.uint8)
                arrays[f"y_{split}"] = np.asarray(raw.targets, dtype=np.uint8)
        except (OSError, RuntimeError) as error:
            message = f"in {path.parent}, or downloadable ({error}); set WELLCOND_DATA to a folder with {name}.npz"
            raise FileNotFoundError(f"dataset = {name!r}: must be {message}") from error
        part = Path(folder) / "part.npz"
        np.savez(part, **arrays)  # type: ignore[arg-type]
        part.replace(path)


def _images(x: Bytes, y: Bytes) -> Images:
    x = x[..., None] if x.ndim == 3 else x  # (N, H, W[, C])
    images = torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)
    return Images(images, torch.from_numpy(y.astype(np.int64)))


def load(
    name: str | Callable[[], Any],
    *,
    seed: int = 0,
    validation: float = 0.25,
    n_train: int | None = None,
    n_test: int | None = None,
    device: torch.device | str = "cpu",
) -> Data:
    """A data set by name, or from a factory, see `source`, split into training, validation and test images.

    seed: chooses the validation split; the test set never depends on it. validation: fraction of the official
    training images held out, in [0, 1). n_train, n_test: keep only so many images (None: all); the kept test images
    are the same for every seed.
    Raises ValueError for an unknown name, a fraction or a count out of range, or a corrupted file; FileNotFoundError
    for data that is neither there nor downloadable.
    """
    found = source(name)
    if not 0 <= validation < 1:
        raise invalid("validation", validation, "in [0, 1)")
    for field, n in (("n_train", n_train), ("n_test", n_test)):
        if n is not None and n < 1:
            raise invalid(field, n, ">= 1, or None for all")
    if found.arrays is not None:
        arrays = found.arrays()
        sha256 = _content_hash(arrays)
    else:
        name = str(name)
        path = paths.data() / f"{name}.npz"
        if not path.exists():
            _download(name, path)
        arrays, sha256 = _read(path, found.sha256)

    order = _hash_order(arrays["x_train"], arrays["y_train"], seed)
    held_out = round(validation * len(order))
    fitted = order[held_out:][:n_train]
    if not len(fitted):
        raise invalid("validation", validation, f"small enough to leave one of {len(order)} images for training")
    test = _hash_order(arrays["x_test"], arrays["y_test"], 0)[:n_test]
    return Data(
        name.__name__ if callable(name) else name,
        train=_images(arrays["x_train"][fitted], arrays["y_train"][fitted]),
        validation=_images(arrays["x_train"][order[:held_out]], arrays["y_train"][order[:held_out]]),
        test=_images(arrays["x_test"][test], arrays["y_test"][test]),
        num_classes=found.num_classes,
        sha256=sha256,
    ).to(device)
