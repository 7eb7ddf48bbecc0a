"""Data sets: the embedded one, splits that do not depend on the order of a file, damaged files, augmentation."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import generator
from study import data
from study.data import Images, Source
from study.experiments.specification import Experiment


def identities(images):
    """The images as a set of (bytes, label)."""
    return {(image.numpy().tobytes(), int(label)) for image, label in zip(images.images, images.labels, strict=True)}


# ------------------------------------------------------------------------------------------------------------ digits


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_digits_are_sklearns_enlarged(digits):
    """1,797 images in [0, 255]; averaging an enlarged digit over its 8 x 8 cells gives nearly the original back."""
    from sklearn.datasets import load_digits

    assert digits.shape == (1, 28, 28)
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1078, 359, 360)
    assert digits.num_classes == 10
    everything = [digits.train, digits.validation, digits.test]
    assert all(part.images.dtype == torch.uint8 and part.labels.dtype == torch.int64 for part in everything)
    original = load_digits()
    counts = sum(torch.bincount(part.labels, minlength=10) for part in everything)
    assert counts.tolist() == np.bincount(original.target).tolist()
    small = torch.nn.functional.adaptive_avg_pool2d(torch.cat([p.pixels(slice(None)) for p in everything]), 8)
    means = sorted(small.mean((1, 2, 3)).tolist())
    expected = sorted((original.images.mean((1, 2)) / 16).tolist())
    assert means == pytest.approx(expected, abs=0.01)  # rounding to 1/255, edge pixels of the interpolation


def test_splits_are_disjoint_and_complete(digits):
    parts = [identities(part) for part in (digits.train, digits.validation, digits.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 1797


def test_digits32_are_coloured_and_larger():
    coloured = data.load("digits32", n_train=10, n_test=5)
    assert coloured.shape == (3, 32, 32)
    assert torch.equal(coloured.train.images[:, 0], coloured.train.images[:, 2])


def test_pixels_are_the_bytes_over_255(digits):
    x = digits.train.pixels(slice(0, 20))
    assert x.dtype == torch.get_default_dtype()
    torch.testing.assert_close(x, digits.train.images[:20].float() / 255)
    index = torch.tensor([5, 2, 2])
    assert torch.equal(digits.train.pixels(index), x[index])
    coloured = Images(torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    assert coloured.pixels(slice(None)).is_contiguous()


# ------------------------------------------------------------------------------------------------- files of one's own


def arrays(n_train=40, n_test=12, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 256, (n_train, 6, 5), dtype=np.uint8),
        "y_train": rng.integers(0, 10, n_train, dtype=np.uint8),
        "x_test": rng.integers(0, 256, (n_test, 6, 5), dtype=np.uint8),
        "y_test": rng.integers(0, 10, n_test, dtype=np.uint8),
    }


def permuted(content, seed=1):
    rng = np.random.default_rng(seed)
    orders = {split: rng.permutation(len(content[f"y_{split}"])) for split in ("train", "test")}
    return {name: values[orders[name[2:]]] for name, values in content.items()}


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A data folder, a data set of that name without a checksum, and a function that writes its file."""
    monkeypatch.setenv("WELLCOND_DATA", str(tmp_path / "data"))
    monkeypatch.setitem(data.DATASETS, "mnist", Source(10, torchvision="MNIST"))

    def write(content):
        (tmp_path / "data").mkdir(exist_ok=True)
        np.savez(tmp_path / "data" / "mnist.npz", **content)

    return write


def same(a, b):
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


def test_the_split_does_not_depend_on_the_order_of_the_file(mnist):
    mnist(arrays())
    one = data.load("mnist", seed=3)
    mnist(permuted(arrays()))
    other = data.load("mnist", seed=3)
    assert one.sha256 == other.sha256
    assert one.shape == (1, 6, 5)
    assert all(same(getattr(one, part), getattr(other, part)) for part in ("train", "validation", "test"))


def test_images_keep_their_labels(mnist):
    content = arrays()
    mnist(permuted(content))
    loaded = data.load("mnist")
    for split, parts in (("train", [loaded.train, loaded.validation]), ("test", [loaded.test])):
        expected = {(x.tobytes(), int(y)) for x, y in zip(content[f"x_{split}"], content[f"y_{split}"], strict=True)}
        assert set.union(*map(identities, parts)) == expected


def test_the_split_follows_the_seed_and_the_test_set_does_not(mnist):
    mnist(arrays())
    one, again, other = (data.load("mnist", seed=seed, n_test=5) for seed in (0, 0, 1))
    assert same(one.train, again.train)
    assert identities(one.validation) != identities(other.validation)
    assert same(one.test, other.test)
    for loaded in (one, other):
        assert not identities(loaded.train) & identities(loaded.validation)


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ({}, (30, 10, 12)),
        ({"validation": 0.1}, (36, 4, 12)),
        ({"validation": 0}, (40, 0, 12)),
        ({"n_train": 7, "n_test": 3}, (7, 10, 3)),
        ({"n_train": 1000, "n_test": 1000}, (30, 10, 12)),
    ],
)
def test_sizes(mnist, arguments, sizes):
    mnist(arrays())
    loaded = data.load("mnist", **arguments)
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == sizes


def test_subsets_are_beginnings_of_the_whole(mnist):
    mnist(arrays())
    whole, part = data.load("mnist"), data.load("mnist", n_train=7, n_test=3)
    assert same(part.train, whole.train.first(7))
    assert same(part.test, whole.test.first(3))
    assert whole.train.first(None) is whole.train


def test_one_changed_pixel_or_label_changes_the_content_hash(mnist):
    content = arrays()
    mnist(content)
    hashes = {data.load("mnist").sha256}
    for name in ("x_train", "y_test"):
        changed = {key: values.copy() for key, values in content.items()}
        changed[name].flat[0] ^= 1
        mnist(changed)
        hashes.add(data.load("mnist").sha256)
    assert len(hashes) == 3


def test_the_checksum_is_checked(mnist, monkeypatch):
    mnist(arrays())
    sha256 = data.load("mnist").sha256
    monkeypatch.setitem(data.DATASETS, "mnist", dataclasses.replace(data.DATASETS["mnist"], sha256=sha256))
    mnist(permuted(arrays()))
    assert data.load("mnist").sha256 == sha256  # another order is the same data
    mnist(arrays(seed=5))
    with pytest.raises(ValueError, match=f"sha256 = '[0-9a-f]+': must be {sha256} for mnist.npz; delete the file"):
        data.load("mnist")


def truncated(path, content):
    np.savez(path, **content)
    path.write_bytes(path.read_bytes()[:-200])


def flipped(path, content):
    np.savez(path, **content)
    raw = bytearray(path.read_bytes())
    raw[300] ^= 0xFF
    path.write_bytes(bytes(raw))


def damaged_compressed(path, content):
    np.savez_compressed(path, **content)
    raw = bytearray(path.read_bytes())
    raw[150:200] = bytes(50)
    path.write_bytes(bytes(raw))


def single_array(path, content):
    with path.open("wb") as file:
        np.save(file, content["x_train"])


DAMAGE = {
    "truncated": truncated,
    "flipped bits": flipped,
    "damaged compressed": damaged_compressed,
    "empty": lambda path, content: path.write_bytes(b""),
    "text": lambda path, content: path.write_text("<html>not found</html>"),
    "a single array": single_array,
    "no labels": lambda path, content: np.savez(path, x_train=content["x_train"], x_test=content["x_test"]),
    "too few labels": lambda path, content: np.savez(path, **{**content, "y_train": content["y_train"][:-1]}),
    "objects": lambda path, content: np.savez(path, **{**content, "y_test": np.array([{}, []], dtype=object)}),
    "float pixels": lambda path, content: np.savez(path, **{**content, "x_train": content["x_train"] / 255}),
    "a folder": lambda path, content: path.mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_one_line_errors_that_name_the_file(mnist, tmp_path, damage):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "mnist.npz"
    DAMAGE[damage](path, arrays())
    with pytest.raises(ValueError, match=r"file = '.*mnist\.npz': must be ") as caught:
        data.load("mnist")
    assert "\n" not in str(caught.value)


class Fake:
    """A torchvision data set, already downloaded."""

    def __init__(self, root, train, download):
        assert download
        part = "train" if train else "test"
        self.data, self.targets = torch.from_numpy(arrays()[f"x_{part}"]), arrays()[f"y_{part}"].tolist()


def test_a_missing_file_is_downloaded_once(mnist, tmp_path, monkeypatch):
    import torchvision.datasets

    mnist(arrays())
    expected = data.load("mnist")
    (tmp_path / "data" / "mnist.npz").unlink()
    monkeypatch.setattr(torchvision.datasets, "MNIST", Fake)
    assert same(data.load("mnist").train, expected.train)
    monkeypatch.delattr(torchvision.datasets, "MNIST")
    assert data.load("mnist").sha256 == expected.sha256
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mnist.npz"]


@pytest.mark.parametrize("error", [RuntimeError("Error downloading"), OSError("no route to host")])
def test_missing_data_without_a_network(mnist, tmp_path, monkeypatch, error):
    import torchvision.datasets

    def offline(*_, **__):
        raise error

    monkeypatch.setattr(torchvision.datasets, "MNIST", offline)
    with pytest.raises(FileNotFoundError, match=f"dataset = 'mnist': must be in .*{error}.*WELLCOND_DATA") as caught:
        data.load("mnist")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "minst"}, "dataset = 'minst': unknown; did you mean 'mnist'"),
        ({"validation": 1.0}, r"validation = 1.0: must be in \[0, 1\)"),
        ({"validation": -0.1}, r"validation = -0.1: must be in \[0, 1\)"),
        ({"n_train": 0}, "n_train = 0: must be >= 1, or None for all"),
        ({"n_test": -1}, "n_test = -1: must be >= 1, or None for all"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(**{"name": "digits", **arguments})


# ------------------------------------------------------------------------------------------------------------- batches


def numbered(n):
    """Images that carry their index as their label and in every pixel."""
    index = torch.arange(n)
    return Images(index.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2), index)


@settings(max_examples=30)
@given(n=st.integers(1, 40), size=st.integers(1, 50))
def test_batches_cover_every_image_once(n, size):
    images = numbered(n)
    for batches in (images.chunks(size), images.batches(size, seed=0, epoch=1)):
        batches = list(batches)
        assert [len(y) for _, y in batches] == [size] * (n // size) + [n % size] * (n % size > 0)
        labels = torch.cat([y for _, y in batches])
        assert sorted(labels.tolist()) == list(range(n))
        pixels = torch.cat([x[:, 0, 0, 0] for x, _ in batches])
        torch.testing.assert_close(pixels, labels / 255)


def order_of(seed, epoch):
    return torch.cat([y for _, y in numbered(50).batches(16, seed=seed, epoch=epoch)]).tolist()


def test_batches_are_shuffled_by_seed_and_epoch_alone():
    torch.manual_seed(1)
    one = order_of(0, 1)
    torch.manual_seed(2)
    assert order_of(0, 1) == one
    assert len({tuple(order_of(seed, epoch)) for seed in (0, 1) for epoch in (1, 2, 3)}) == 6
    assert one != sorted(one)


def test_unknown_augmentation():
    with pytest.raises(ValueError, match="augment = 'crop_filp': unknown; did you mean 'crop_flip'"):
        next(numbered(3).batches(2, seed=0, epoch=1, augment="crop_filp"))


@pytest.mark.parametrize("shape", [(200, 3, 7, 6), (200, 1, 9, 9)])
def test_crops_and_flips_against_a_slow_search(shape):
    """Every result is one of the 9 x 9 x 2 windows of the padded image, and every offset and flip turns up."""
    x = torch.rand(shape, generator=generator())
    y = data.AUGMENTATIONS["crop_flip"](x, generator(5))
    assert y.shape == x.shape
    h, w = shape[2:]
    padded = torch.zeros(shape[0], shape[1], h + 8, w + 8)
    padded[:, :, 4:-4, 4:-4] = x
    found = []
    for image, result in zip(padded, y, strict=True):
        windows = {
            (dy, dx, flip): image[:, dy : dy + h, dx : dx + w].flip(-1) if flip else image[:, dy : dy + h, dx : dx + w]
            for dy in range(9)
            for dx in range(9)
            for flip in (False, True)
        }
        matches = [key for key, window in windows.items() if torch.equal(window, result)]
        assert len(matches) == 1
        found += matches
    dy, dx, flip = zip(*found, strict=True)
    assert set(dy) == set(dx) == set(range(9))
    assert 60 < sum(flip) < 140  # 200 fair coins: six standard deviations


def test_augmentation_differs_by_epoch_and_image():
    image = torch.randint(0, 256, (1, 1, 12, 12), dtype=torch.uint8, generator=generator()).expand(30, -1, -1, -1)
    images = Images(image, torch.zeros(30, dtype=torch.int64))

    def epoch(number):
        return torch.cat([x for x, _ in images.batches(10, seed=0, epoch=number, augment="crop_flip")])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))
    assert len({x.numpy().tobytes() for x in epoch(1)}) > 20


def stripes(n=12, size=8):
    """Horizontal and vertical stripes, of a user."""
    lines = np.arange(size, dtype=np.uint8) % 2 * 255
    image = np.tile(lines, (size, 1))
    x = np.stack([image if k % 2 else image.T for k in range(n)])
    x[:, 0, 0] = np.arange(n)  # no two alike
    return x, (np.arange(n) % 2).astype(np.uint8)


def striped():
    return (*stripes(), *stripes(6))


def by_name():
    return dict(zip(data.NAMES, striped(), strict=True))


def floats():
    return tuple(a / 255 for a in striped())


def three():
    return striped()[:3]


@pytest.fixture
def own(monkeypatch):
    """This module as one that a user can name."""
    monkeypatch.setitem(sys.modules, "own_data", sys.modules[__name__])


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("factory", ["striped", "by_name"])
def test_data_of_your_own_are_a_function(factory):
    loaded = data.load(f"own_data:{factory}", validation=0.25)
    assert (loaded.num_classes, loaded.shape) == (2, (1, 8, 8))
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (9, 3, 6)
    everything = torch.cat([loaded.train.images, loaded.validation.images])[:, 0]
    assert sorted(everything[:, 0, 0].tolist()) == list(range(12))
    assert loaded.sha256 == data.load("own_data:striped").sha256 == data.load(striped).sha256
    assert data.load(striped).name == "striped"


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_data:floats", "dataset = 'own_data:floats': must be uint8 arrays .* \\(not uint8\\)"),
        (
            "own_data:three",
            "dataset = 'own_data:three': must be a function that returns x_train, y_train, x_test, y_test",
        ),
        ("own_data:nothing", "dataset = 'own_data:nothing': must be an importable package.module:factory"),
        ("own_data:np", "dataset = 'own_data:np': must be a factory of arrays, not a module"),
        ("no folder", "dataset = 'no folder': unknown"),
    ],
)
def test_data_of_your_own_that_are_none(name, message):
    with pytest.raises(ValueError, match=message):
        data.load(name)


@pytest.mark.usefixtures("own")
def test_an_experiment_knows_data_of_your_own_by_their_content(monkeypatch):
    """A name does not say what the function returns today; results of other data are not taken for its own."""

    def specification():
        return Experiment.load("mnist_lenet5", "smoke", dataset="own_data:striped").cells()[0].spec()

    first = specification()
    assert first["content"] == data.content("own_data:striped") != ""
    assert "content" not in Experiment.load("mnist_lenet5", "smoke").cells()[0].spec()
    monkeypatch.setattr(sys.modules["own_data"], "striped", lambda: (*stripes(10), *stripes(6)))
    data._named.cache_clear()
    assert specification()["content"] != first["content"]
    data._named.cache_clear()
    with pytest.raises(ValueError, match="dataset = 'own_data:nothing': must be an importable"):
        Experiment.load("mnist_lenet5", "smoke", dataset="own_data:nothing")


def test_a_folder_of_images(tmp_path):
    from PIL import Image

    for split, (x, y) in {"train": stripes(), "test": stripes(6)}.items():
        for k, (image, label) in enumerate(zip(x, y, strict=True)):
            folder = tmp_path / split / ("across", "down")[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).convert("RGB").save(folder / f"{k}.png")
    loaded = data.load(str(tmp_path), validation=0)
    assert (loaded.num_classes, loaded.shape, len(loaded.train), len(loaded.test)) == (2, (3, 8, 8), 12, 6)
    down = loaded.train.images[loaded.train.labels == 1][:, 0, 1]
    assert torch.equal(down[0], torch.from_numpy(stripes()[0][1][1]))
    (tmp_path / "test" / "across" / "0.png").write_bytes(b"no image")
    data._folder.cache_clear()
    with pytest.raises(ValueError, match="must be a folder of images of one size, in folders by class"):
        data.load(str(tmp_path))


def test_halved_images_are_means_over_four_pixels():
    images = data.Images(
        torch.tensor([[[[0, 1, 255, 255], [2, 4, 255, 255]]]], dtype=torch.uint8), torch.zeros(1, dtype=torch.long)
    )
    assert images.halved().images.tolist() == [[[[2, 255]]]]  # 7/4 rounds to 2
