"""Whether 1 is white or nearly black: decided by the largest number of a set, not by its dtype or name."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import data, streams
from vaejax.data import tfds


class Images(list):
    """Examples as TFDS gives them, of which the reader says how many it took."""

    taken = 0

    def __getitem__(self, index):
        return {"image": super().__getitem__(index)}

    def __iter__(self):
        for index in range(len(self)):
            type(self).taken += 1
            yield self[index]


def a_set(folder, dtype, **largest):
    """What TFDS calls a builder: of each split 3 images of 2x2, one pixel of the last one as bright as is said."""
    splits = {}
    for split, white in largest.items():
        splits[split] = Images(np.zeros((3, 2, 2, 1), dtype))
        list.__getitem__(splits[split], 2)[1, 1, 0] = white
    feature = types.SimpleNamespace(np_dtype=np.dtype(dtype), shape=(2, 2, 1))
    info = types.SimpleNamespace(splits=dict.fromkeys(splits), features={"image": feature})
    return types.SimpleNamespace(data_dir=folder, info=info, as_data_source=lambda split: splits[split])


@pytest.mark.parametrize(
    ("dtype", "train", "test", "white"),
    [
        ("uint8", 1, 1, 1),
        ("uint8", 0, 0, 1),
        ("uint8", 1, 2, 255),  # a dark split is scaled as the bright one
        ("uint8", 200, 0, 255),
        ("uint16", 1, 1, 1),
        ("uint16", 255, 3, 255),  # 8 bits that are stored in 16
        ("uint16", 1, 200, 255),
        ("uint16", 1, 256, 65535),
        ("float32", 1, 1, None),
    ],
)
def test_the_largest_number_of_all_splits_decides(tmp_path, dtype, train, test, white):
    made = a_set(tmp_path, dtype, train=train, test=test)
    assert tfds._white(made, "image") == white
    numbers = np.array([0, 1, max(train, test)]).astype(dtype)
    scaled = tfds._full_scale(numbers, white)
    if white is None:
        np.testing.assert_array_equal(scaled, numbers)
    else:
        expected = numbers / np.float64(white)
        np.testing.assert_allclose(scaled / np.float64(np.iinfo(scaled.dtype).max), expected, rtol=1e-15)
        np.testing.assert_allclose(streams.as_numbers(scaled), expected, rtol=1e-6)


def test_the_answer_is_kept_and_a_damaged_one_is_not_believed(tmp_path):
    made = a_set(tmp_path, "uint8", train=1, test=1)
    Images.taken = 0
    assert [tfds._white(made, "image") for _ in range(3)] == [1, 1, 1]
    assert Images.taken == 6
    (kept,) = tmp_path.iterdir()
    for damaged in ("", "7", "65535"):
        kept.write_text(damaged)
        assert tfds._white(made, "image") == 1
    Images.taken = 0
    assert tfds._white(a_set(tmp_path / "no folder", "uint8", test=2, train=1), "image") == 255
    assert Images.taken == 3  # one pixel that is neither 0 nor 1 settles it


def test_a_source_gives_the_same_numbers(tmp_path):
    examples = Images(np.array([[0, 1], [1, 1]], np.uint8).reshape(1, 2, 2, 1))
    source = tfds.Source(examples, "image", (2, 2), 1)
    np.testing.assert_array_equal(streams.as_numbers(source[np.int64(0)]), [[0, 1], [1, 1]])


def test_floats_are_not_scaled_twice(no_type_hook):
    with pytest.raises(ValueError, match=r"dtype uint8 or uint16.*; got float32: floats need no scaling"):
        streams.as_numbers(jnp.ones(3))
    with pytest.raises(ValueError, match="expected images as an array of numbers; got a dict of image"):
        streams.as_numbers({"image": np.ones(3, np.uint8)})


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bright", "says"), [("uint8", 1, "0 or 1, and taken"), ("uint16", 4000, "65,535")])
def test_a_set_that_tfds_wrote(tmp_path, dtype, bright, says):
    pytest.importorskip("tensorflow")
    if dtype == "uint16":
        pytest.importorskip("cv2")  # decodes 16 bits
    import tensorflow_datasets as tfds

    class Stored:
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(shape=(3, 4, 1), dtype=np.dtype(dtype))}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(bright), "test": self._generate_examples(0)}

        def _generate_examples(self, white):
            for i in range(12):
                yield i, {"image": np.full((3, 4, 1), white * (i % 2), dtype)}

    made = type(f"VaejaxStored{dtype.title()}", (Stored, tfds.core.GeneratorBasedBuilder), {"__module__": __name__})
    where = {"data_dir": tmp_path, "manual_dir": tmp_path}
    expected = {1: 1.0, 4000: 4000 / 65535}[bright]
    for split, largest in (("train", expected), ("test", 0.0)):
        loaded = data.load(made.name, split, **where)
        assert loaded.images.max() == np.float32(largest)
        assert says in loaded.description
        source = streams.open_source(made.name, split, **where)
        streamed = streams.as_numbers(np.stack([source[i] for i in range(len(source))]))
        np.testing.assert_allclose(streamed, loaded.images, rtol=1e-6)
