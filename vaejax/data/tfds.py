"""Image sets of TensorFlow Datasets (TFDS) as arrays: prepared once, read without TensorFlow, cached beside the set.

TFDS is imported inside the functions, and downloads nothing unless asked.
"""

import contextlib
import difflib
import importlib.util
import logging
import os
import pathlib
import re
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np


class Part(NamedTuple):
    """The images `(n, *data_shape)` and labels `(n,)`, or None, of one split, as TFDS stores them: bytes mostly."""

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
        found = [_read_slice(builder, image, label, *where) for where in slices]
    spans = " and ".join(f"{base}[{start}:{stop}]" for base, start, stop in slices)
    order = "in the order of TFDS, which shuffles when it writes and so is not that of the original files"
    return found, f"TFDS {builder.info.full_name}, {spans}, {order}. {' '.join(builder.info.description.split())}"


class Source:
    """The images of one part of a set, each decoded from disk when it is asked for, as TFDS stores them: bytes."""

    def __init__(self, examples: Any, image: str, shape: tuple[int, ...]):
        self._examples, self._image, self._shape = examples, image, shape

    def __len__(self) -> int:
        """Number of images."""
        return len(self._examples)

    def __getitem__(self, index: int | np.integer) -> np.ndarray:
        """One image, grey ones without their channel axis."""
        return np.asarray(self._examples[int(index)][self._image]).reshape(self._shape)


def open_source(
    name: str,
    part: str,
    *,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
    download: bool = False,
    others: tuple[str, ...] = (),
) -> Source:
    """A part of a TFDS image set that is read from disk image by image; the arguments are those of `read`."""
    with _quiet():
        builder, image, _ = _prepared_builder(name, data_dir, manual_dir, download, others)
        base, start, stop = _slice(builder, part)
        shape = builder.info.features[image].shape
        examples = builder.as_data_source(split=f"{base}[{start}:{stop}]")
    return Source(examples, image, shape[:-1] if shape[-1] == 1 else shape)


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
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
    # The cache saves time and nothing else: in a folder that cannot be written, or on a full disk, go without.
    with contextlib.suppress(OSError):
        try:
            with open(temporary, "wb") as file:
                np.savez(file, images=images, **({} if labels is None else {"labels": labels}))  # pyright: ignore[reportArgumentType]
            os.replace(temporary, cache)
        finally:
            temporary.unlink(missing_ok=True)
    return Part(images, labels)
