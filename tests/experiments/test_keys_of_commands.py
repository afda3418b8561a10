"""The keys of the commands: in a run none is drawn from twice but where it is meant, as in `tests/test_keys.py`."""

import functools

import jax
import pytest
from key_recorder import recorded

TINY = ("--hidden-sizes", "4", "--num-steps", "3", "--batch-size", "20", "--eval-samples", "3", "--latent-dim", "1")
POINTS = ("--binarization", "none", "--likelihood", "gaussian_shared_std", "--dataset")
NVIL = ("--estimator", "score_function", "--baseline", "nvil")


@pytest.fixture(autouse=True)
def _few_images(experiments, monkeypatch):
    """Twenty images of each split of every set.

    So each step is an epoch, whose order each chunk of steps draws anew; and no batch of an evaluation is filled up
    with examples that were there before.
    """
    from engines.harness import loading

    whole = loading.load

    def load(*arguments):
        split = whole(*arguments)
        labels = None if split.labels is None else split.labels[:20]
        return split._replace(images=split.images[:20], labels=labels)

    monkeypatch.setattr(loading, "load", load)


def watched(record, monkeypatch):
    """Give the data, the reports and the pictures of `train.py` phases of their own."""
    from engines.harness import loading
    from engines.train import build, population, snapshots

    def during(phase, function):
        @functools.wraps(function)
        def wrapped(*arguments, **options):
            with record.during(phase):
                return jax.block_until_ready(function(*arguments, **options))

        return wrapped

    def with_phase(make):
        def made(*arguments):
            measure = make(*arguments)
            phases = {"validate": "validation", "evaluate": "report"}
            return measure._replace(**{name: during(phase, getattr(measure, name)) for name, phase in phases.items()})

        return made

    monkeypatch.setattr(loading, "load", during("data", loading.load))
    monkeypatch.setattr(population, "measure_of", with_phase(population.measure_of))
    monkeypatch.setattr(build, "build_measure", with_phase(build.build_measure))
    for name in ("snapshot", "pictures"):
        monkeypatch.setattr(snapshots.Viewer, name, during("pictures", getattr(snapshots.Viewer, name)))


RUNS = {
    "digits, NVIL": (*NVIL, "--seed", "7"),
    "two Gaussians": (*POINTS, "two_gaussians", "--objective", "optimal_std"),
    "linear Gaussian": (*POINTS, "linear_gaussian"),
    "several of points": ("--seeds", "2", *POINTS, "spiral"),
}


@pytest.mark.slow_for("digits, NVIL", "several of points")
@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_train_uses_no_key_twice(options, tmp_path, monkeypatch):
    from engines.train import config, population
    from engines.train import run as single

    options = config.parse([*TINY, *options, "--runs-dir", str(tmp_path)])
    with recorded() as record:
        watched(record, monkeypatch)
        (population if options.num_runs > 1 else single).run(options)
    assert {phase for uses in record.uses.values() for _, phase in uses} >= {"all", "validation"}
    meant = {"data", "validation", "pictures"} | ({"report"} if options.num_runs > 1 else set())
    assert not record.faults(meant)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_comparison_uses_no_key_twice(seed, tmp_path):
    from engines.gradients import config, run
    from engines.gradients.training import VALIDATION_SAMPLES
    from engines.harness import loading

    sizes = "--hidden-sizes 4 --latent-dim 2 --num-steps 3 --batch-size 20 --num-seeds 2 --num-samples 1"
    sizes += f" --num-repeats 5 --comparison-batch-size 6 --timing-rounds 2 --estimators pathwise --seed {seed}"
    with recorded() as record:
        run.run(config.parse([*sizes.split(), "--runs-dir", str(tmp_path)]))
    # Each report validates with the same noise.
    (key,) = jax.random.split(loading.evaluation_key("validation"), 1)
    again = {bits_of(jax.random.fold_in(key, i)) for i in range(VALIDATION_SAMPLES)}
    assert again <= record.uses.keys()
    assert record.faults().keys() == again


def bits_of(key):
    return tuple(jax.random.key_data(key).tolist())


def test_the_keys_of_a_run_are_those_of_the_seed():
    """Those of images as they always were: the first two of a split of the seed's key."""
    from engines.family import difference
    from engines.gradients import run
    from engines.harness import loading

    for seed in (0, 5):
        first, second = map(bits_of, jax.random.split(jax.random.key(seed)))
        for keys in (loading.run_keys("digits", seed), run.keys_of(seed)[0]):
            assert (bits_of(keys.params), bits_of(keys.training)) == (first, second)
        init, training, density = map(bits_of, difference.keys_of(seed))
        assert (init, training) == (first, second)
        assert density not in (first, second)
    drawn = {bits_of(jax.random.key(i)) for i in range(10)}
    for dataset in loading.DRAWN:
        keys = loading.run_keys(dataset, 0)
        below = {bits_of(jax.random.fold_in(jax.random.key(0), part)) for part in range(3)}
        assert not {bits_of(key) for key in keys} & (drawn | below)
