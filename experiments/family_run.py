"""The parts of `pca_to_vae.py`, one after another: each leaves its numbers, arrays and pictures, and is done once."""

import dataclasses
import gzip
import importlib
import json
import pathlib
import time
import zipfile
from typing import Any

import family
import family_plots
import family_tables
import loading
import numpy as np
import pca_to_vae
import run_folder

# Module and function of each part; a module is imported when its part is run.
PARTS = {
    "pca": ("family_pca", "run"),
    "linear": ("family_linear", "linear"),
    "linear_vae": ("family_linear_vae", "run"),
    "deep": ("family_deep", "run"),
    "denoising": ("family_denoising", "digits"),
    "score": ("family_denoising", "score"),
    "bottleneck": ("family_bottleneck", "run"),
    "difference": ("family_difference", "run"),
    "generator": ("family_generator", "run"),
    "game": ("family_game", "run"),
}

# What says where things are, or which of the parts are wanted, and not what their numbers are.
NOT_COMPARED = ("parts", "data_dir", "manual_dir", "download", "runs_dir", "name", "resume")


def run(config: pca_to_vae.Config) -> None:
    """Run the parts that are not done yet, then write the table of all that are."""
    folder = run_folder.choose_folder(config.runs_dir, config.name, f"family-{config.dataset}", config.resume)
    check_same_options(config, folder)
    setting = setting_of(config)
    folder.mkdir(parents=True, exist_ok=config.resume)
    done = [name for name in PARTS if (folder / f"{name}.json").exists()]
    parts = [name for name in PARTS if name in done or name in config.parts]
    run_folder.write_json(folder / "config.json", dataclasses.asdict(config) | {"parts": parts})
    print(f"{setting.train.description}; leaves everything in {folder}")
    for name in config.parts:
        if (folder / f"{name}.json").exists():
            print(f"{name}: done before")
            continue
        start = time.perf_counter()
        module, function = PARTS[name]
        result = getattr(importlib.import_module(module), function)(setting)
        seconds = time.perf_counter() - start
        run_folder.write_arrays(folder / f"{name}.npz", **result.arrays)
        # The last thing of a part: that it is there says that the part is done.
        run_folder.write_json(folder / f"{name}.json", {"rows": result.rows, "seconds": seconds})
        print(f"{name}: {seconds:.0f} s")
    results = gathered(config, folder)
    run_folder.write_json(folder / "results.json", results)
    (folder / "table.md").write_text(family_tables.markdown(results))
    if config.effort != 1:
        print(f"\n{family_tables.warning(results)}")
    drawn = family_plots.draw(folder)
    print(f"\n{family_tables.terminal(results)}")
    pictures = ", ".join(path.name for path in drawn)
    print(f"\nNumbers are in {folder}, in results.json, and with notes on each in table.md; pictures: {pictures}")


def setting_of(config: pca_to_vae.Config) -> family.Setting:
    """The data, and what else the parts need to know.

    Raises:
        ValueError: if the images are not grey or have no labels, or a file holds no images.
        OSError: if a file cannot be read.
    """
    train, test = loading.load(config, "train+validation"), loading.load(config, "test")
    shape = train.images.shape[1:]
    if len(shape) != 2 or train.labels is None:
        raise ValueError(
            f"expected grey images with labels, such as digits, mnist or fashion_mnist; came {config.dataset} with "
            f"examples of shape {shape} and {'no' if train.labels is None else 'some'} labels"
        )
    code_size = 30 if shape[0] * shape[1] >= 200 else 10
    first, faces = first_images(config, shape), read_faces(config.faces)
    return family.Setting(train, test, code_size, config.effort, config.seed, first, faces)


def first_images(config: pca_to_vae.Config, shape: tuple[int, ...]) -> np.ndarray | None:
    """The first 1,000 of the original training file: TFDS keeps another order, and published numbers have this one."""
    path = pathlib.Path(config.manual_dir or ".") / "train-images-idx3-ubyte.gz"
    if config.manual_dir is None or not path.exists():
        return None
    content = gzip.decompress(path.read_bytes())
    count, *sides = np.frombuffer(content, ">u4", 3, 4)
    if tuple(sides) != shape:  # of another dataset
        return None
    images = np.frombuffer(content, np.uint8, offset=16).reshape(count, *sides)
    return images[:1000].astype(np.float32) / 255


def read_faces(path: str | None) -> np.ndarray | None:
    """Images of faces, from 0 to 1.

    Raises:
        ValueError: if the file is no npz file with images in it.
        OSError: if it cannot be read.
    """
    if path is None:
        return None
    expected = "--faces: expected an npz file with an array `images` (n, height, width)"
    try:
        arrays = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{expected}; {path} is none") from error
    if not isinstance(arrays, np.lib.npyio.NpzFile) or "images" not in arrays:
        raise ValueError(f"{expected}; {path} has no array of that name")
    images = arrays["images"]
    if images.ndim != 3 or len(images) < 16:
        raise ValueError(f"{expected}, n of at least 16, for 15 components; came {images.shape} in {path}")
    images = images.astype(np.float32) / (255 if images.dtype == np.uint8 else 1)
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"{expected}, of whole numbers from 0 to 255 (uint8) or others from 0 to 1; came values from "
            f"{images.min():.4g} to {images.max():.4g} in {path}"
        )
    if np.linalg.matrix_rank((images - images.mean(axis=0)).reshape(len(images), -1)) < 15:
        raise ValueError(f"{expected} that vary in at least 15 directions; those in {path} do not")
    return images


def gathered(config: pca_to_vae.Config, folder: pathlib.Path) -> dict[str, Any]:
    """The rows of every part that is done, each with the name of its part, and the seconds of each."""
    rows, seconds = [], {}
    for name in PARTS:
        path = folder / f"{name}.json"
        if path.exists():
            part = json.loads(path.read_text())
            rows += [{"part": name, **line} for line in part["rows"]]
            seconds[name] = part["seconds"]
    return {"dataset": config.dataset, "effort": config.effort, "rows": rows, "seconds": seconds}


def check_same_options(config: pca_to_vae.Config, folder: pathlib.Path) -> None:
    """Refuse to go on with a run under other options than it was started with.

    Raises:
        ValueError: naming each option and both values.
    """
    path = folder / "config.json"
    if not path.exists():
        return
    there, here = json.loads(path.read_text()), json.loads(json.dumps(dataclasses.asdict(config)))
    others = [
        f"--{name.replace('_', '-')} was {there.get(name)}, is {value}"
        for name, value in here.items()
        if name not in NOT_COMPARED and there.get(name) != value
    ]
    if others:
        raise ValueError(
            f"expected the options that {folder} was started with; {'; '.join(others)}. Resume it with those of "
            f"{path}, or start another run under another --name"
        )
