"""Image sets of TensorFlow Datasets (TFDS) as arrays: prepared once, read without TensorFlow, cached beside the set.

TFDS is imported inside the functions, and downloads nothing unless asked.
"""

import contextlib
import difflib
import importlib.util
import itertools
import logging
import os
import pathlib
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np


class Part(NamedTuple):
    """The images `(n, *data_shape)`, floats or integers of which the largest of the dtype is white; labels, or None."""

    images: np.ndarray
    labels: np.ndarray | None


def read(
    name: str,
    parts: tuple[str, ...],
    *,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
    download: bool = False,
    others: tuple[str, ...] = (),
) -> tuple[list[Part], str]:
    """Reads parts ("train", "validation", "test") of a TFDS image set, and prepares it first where need be.

    Args:
        name: as TFDS has it, `"mnist"` or `"emnist/balanced"`.
        parts: which parts to read.
        data_dir: as in `data.load`, and so are `manual_dir`, `download` and what is raised.
        manual_dir: a folder with the original files of this set.
        download: whether TFDS may use the network.
        others: names that are not TFDS's; the message about an unknown name proposes the near ones of both.

    Returns:
        The parts, and a description of which images these are.
    """
    with _quiet():
        builder, image, label = _prepared_builder(name, data_dir, manual_dir, download, others)
        slices = [_slice(builder, part) for part in parts]
        white = _white(builder, image)
        found = [_read_slice(builder, image, label, *where) for where in slices]
    found = [Part(_full_scale(images, white), labels) for images, labels in found]
    spans = " and ".join(f"{base}[{start}:{stop}]" for base, start, stop in slices)
    order = "in the order of TFDS, which shuffles when it writes and so is not that of the original files"
    scale = "" if white is None else f"{_SCALES[white]}. "
    told = " ".join(builder.info.description.split())
    return found, f"TFDS {builder.info.full_name}, {spans}, {order}. {scale}{told}"


class Source:
    """One part of a set, each image decoded from disk when it is asked for; integers as those of a `Part`.

    An example is an image; with the name of a label it is a dict of "image" and "label".
    """

    def __init__(self, examples: Any, image: str, shape: tuple[int, ...], white: int | None, label: str | None = None):
        self._examples, self._image, self._shape, self._white, self._label = examples, image, shape, white, label

    def __len__(self) -> int:
        """Number of images."""
        return len(self._examples)

    def __getitem__(self, index: int | np.integer) -> Any:
        """One example, grey images without their channel axis."""
        example = self._examples[int(index)]
        image = _full_scale(np.asarray(example[self._image]).reshape(self._shape), self._white)
        return image if self._label is None else {"image": image, "label": np.int32(example[self._label])}


def open_source(
    name: str,
    part: str,
    *,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
    download: bool = False,
    others: tuple[str, ...] = (),
    labelled: bool = False,
) -> Source:
    """A part of a TFDS image set that is read from disk image by image; the arguments are those of `read`."""
    with _quiet():
        builder, image, label = _prepared_builder(name, data_dir, manual_dir, download, others)
        base, start, stop = _slice(builder, part)
        shape = builder.info.features[image].shape
        examples = builder.as_data_source(split=f"{base}[{start}:{stop}]")
        white = _white(builder, image)
    if labelled and label is None:
        raise ValueError(
            f"expected a TFDS set with one label; got {name!r}, which has none: open_source reads its images"
        )
    return Source(examples, image, shape[:-1] if shape[-1] == 1 else shape, white, label if labelled else None)


def _prepared_builder(name: str, data_dir, manual_dir, download: bool, others: tuple[str, ...]):
    """TFDS's builder of a set that is on disk, now at the latest, and its features for image and label."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)  # the community's list would come over the network
    if re.split("[/:]", name)[0] not in known:
        near = difflib.get_close_matches(name.lower(), [*others, *known], n=5)
        hint = f"the nearest names are {', '.join(map(repr, near))}" if near else "no name is near it"
        raise ValueError(
            f"expected the name of an embedded set ({', '.join(others)}) or of a TFDS image set, got {name!r}: "
            f"{hint}; tensorflow_datasets.list_builders() lists them all"
        )
    builder = tfds.builder(name, data_dir=data_dir)
    image, label = _image_and_label(tfds, builder)
    if not builder.is_prepared():
        _prepare(tfds, builder, manual_dir, download)
    return builder, image, label


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what TFDS logs on every use: a set that is not prepared (an error says so), OpenCV that is absent."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _image_and_label(tfds, builder) -> tuple[str, str | None]:
    """Returns the names of the image feature and, if there is one, of the label."""

    def only(kind, usual):
        found = [key for key in features if isinstance(features[key], kind)]
        return usual if usual in found else found[0] if len(found) == 1 else None

    features = dict(getattr(builder.info.features, "items", dict)())
    image = only(tfds.features.Image, "image")
    if image is None or None in features[image].shape:
        seen = ", ".join(f"{key}: {type(value).__name__}{value.shape}" for key, value in features.items())
        raise ValueError(
            f"expected a TFDS set with one image feature of a fixed shape, got {builder.name!r} with features {seen}: "
            "choose an image set, or make arrays of it yourself and pass those to the training"
        )
    return image, only(tfds.features.ClassLabel, "label")


def _prepare(tfds, builder, manual_dir, download: bool) -> None:
    """Lets TFDS write the set in the format that reads without TensorFlow, from `manual_dir` or from the network."""
    folder = None if manual_dir is None else pathlib.Path(manual_dir).expanduser()
    if not download:
        # TFDS would fetch in silence whatever it does not find, so everything it could ask for has to be there.
        files = sorted(info.filename or url for url, info in (builder.url_infos or {}).items())
        absent = [file for file in files if folder is not None and not (folder / file).is_file()]
        got = None
        if folder is None:
            got = "manual_dir is not given"
        elif not folder.is_dir():
            got = f"manual_dir={str(folder)!r} is no folder"
        elif absent:
            got = f"manual_dir={str(folder)!r} lacks {', '.join(absent)}"
        if got:
            wanted = ", ".join(files) or builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "TFDS registers none"
            raise FileNotFoundError(
                f"{builder.name!r} is not prepared in {builder.data_dir}, and {got}: put its original files "
                f"({wanted}), unchanged, in a folder and pass that as manual_dir, or let TFDS fetch them: download=True"
            )
    if importlib.util.find_spec("tensorflow") is None:
        raise ModuleNotFoundError(
            f"{builder.name!r} is not prepared in {builder.data_dir}. To prepare it once needs TensorFlow, which is "
            'not installed: python -m pip install -e ".[prepare]", in the clone; to read it later does not'
        )
    root = pathlib.Path(builder.data_dir_root)
    root.mkdir(parents=True, exist_ok=True)
    # TFDS keeps extracted files by their plain names and takes them for granted: mnist's would then be fashion_mnist's.
    with tempfile.TemporaryDirectory(dir=root, prefix="extracted-") as extracted:
        config = tfds.download.DownloadConfig(
            manual_dir=folder, extract_dir=extracted, force_checksums_validation=not download
        )
        builder.download_and_prepare(download_config=config, file_format="array_record")


def _slice(builder, part: str) -> tuple[str, int, int]:
    """Returns (TFDS split, start, stop) of a part; what TFDS lacks is carved off the end of its train split."""
    sizes = {base: info.num_examples for base, info in builder.info.splits.items()}
    if part != "train" and part in sizes:
        return part, 0, sizes[part]
    if "train" not in sizes:
        raise ValueError(f"expected a TFDS set with a train split, got {builder.name!r} with {', '.join(sizes)}")
    carved = [other for other in ("validation", "test") if other not in sizes]
    sixth = sizes["train"] // 6
    kept = sizes["train"] - sixth * len(carved)
    start = 0 if part == "train" else kept + sixth * carved.index(part)
    return "train", start, kept if part == "train" else start + sixth


_SCALES = {
    1: "All numbers stored are 0 or 1, and taken as they are",
    255: "The numbers stored, 0 to 255, were divided by 255",
    65535: "The numbers stored, 0 to 65,535, were divided by 65,535",
}


def _white(builder, image: str) -> int | None:
    """The stored number that means 1.0: of 1, 255, 65,535 the least that no number of the set exceeds; None of floats.

    All splits decide, in one order, so that a split that happens to be dark is scaled as the others. One bright pixel
    settles it; only of a set of zeros and ones every image is read, once, since the answer is kept beside the set.
    """
    dtype = builder.info.features[image].np_dtype
    if not np.issubdtype(dtype, np.integer):
        return None
    known = [white for white in _SCALES if white <= np.iinfo(dtype).max]
    kept = pathlib.Path(builder.data_dir) / "vaejax_white.txt"
    with contextlib.suppress(OSError, ValueError):  # absent, or damaged
        if (white := int(kept.read_text())) in known:
            return white
    largest, splits = 0, sorted(builder.info.splits)
    for example in itertools.chain.from_iterable(builder.as_data_source(split=split) for split in splits):
        largest = max(largest, int(example[image].max()))
        if largest > known[-2]:
            break
    white = next(white for white in known if largest <= white)
    with contextlib.suppress(OSError):
        _write(kept, lambda file: file.write(str(white).encode()))
    return white


def _full_scale(images: np.ndarray, white: int | None) -> np.ndarray:
    """The same images as integers of 8 or 16 bits of which the largest of the dtype is white."""
    if white is None:
        return images
    return (
        images.astype(np.uint8) * np.uint8(255)
        if white == 1
        else images.astype(np.uint8 if white == 255 else np.uint16)
    )


def _write(path: pathlib.Path, write: Callable[[Any], Any]) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_slice(builder, image: str, label: str | None, base: str, start: int, stop: int) -> Part:
    """Returns the stored images and labels of a slice, from the cache beside the set or by decoding, then cached."""
    cache = pathlib.Path(builder.data_dir) / f"vaejax_{base}_{start}_{stop}.npz"
    # An absent cache, and equally a damaged one, which the zip checksum reveals, is written anew.
    with contextlib.suppress(OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        with open(cache, "rb") as file, np.load(file) as stored:
            return Part(stored["images"], stored.get("labels"))
    source = builder.as_data_source(split=f"{base}[{start}:{stop}]")
    feature = builder.info.features[image]
    images = np.empty((len(source), *feature.shape), feature.np_dtype)
    labels = None if label is None else np.empty(len(source), np.int32)
    for i, example in enumerate(source):
        images[i] = example[image]
        if labels is not None:
            labels[i] = example[label]
    if images.shape[-1] == 1:
        images = images[..., 0]
    arrays: dict[str, Any] = {"images": images} if labels is None else {"images": images, "labels": labels}
    # The cache saves time and nothing else: in a folder that cannot be written, or on a full disk, go without.
    with contextlib.suppress(OSError):
        _write(cache, lambda file: np.savez(file, **arrays))
    return Part(images, labels)
