"""The benchmark's systems compute the same at small sizes, and the command leaves its rows."""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest
from commands import is_picture, main_of, refusal

SMALL = {"image_shape": (8, 8), "latent_dim": 3, "batch_size": 10, "chunk": 3}


@pytest.fixture(scope="module")
def rooms(experiments):
    """The modules of experiments/ that are tested here."""
    from engines.benchmark import config, run, work

    return config, run, work


def small(work):
    sizes = {"hidden_sizes": tuple(8 for _ in work.hidden_sizes)}
    if work.is_conv:
        sizes["image_shape"] = (8, 8, 3)
        sizes["hidden_sizes"] = (4, 6, 8)
    samples = {"likelihood": 30}.get(work.name, min(work.num_samples, 4))
    return work._replace(**{**SMALL, **sizes, "num_samples": samples})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aevb", "iwae", "conv", "score", "likelihood", "moments"])
def test_systems_agree(rooms, name, monkeypatch):
    from engines.benchmark import systems_flax, systems_jax, workers

    _, _, benchmark_work = rooms
    make = systems_jax.MAKE | systems_flax.MAKE
    if importlib.util.find_spec("torch") is not None:
        from engines.benchmark import systems_torch

        make |= {"torch-eager": systems_torch.MAKE["torch-eager"]}
    monkeypatch.setattr(benchmark_work, "NUM_IMAGES", 120)
    work = small(benchmark_work.WORK[name])
    arguments = (work, *benchmark_work.weights_of(work), benchmark_work.images_of(work))
    done = {}

    class Here:
        def __init__(self, system):
            self.system = system

        def ask(self, command, *words):
            return getattr(self.system, command)(*words)

    # As users have them: NumPyro and flax mix dtypes and ranks, and a Python loop splits keys in ways of its own.
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.debug_key_reuse(False),
    ):
        for system, build in make.items():
            try:
                done[system] = Here(build(*arguments))
            except NotImplementedError:
                assert system == "numpyro"
        workers.check_agreement(work, done)
        for system in done.values():
            system.ask("advance", 4)
    assert {"vaejax", "jax-loop"} <= set(done)


def test_systems_that_differ_are_not_timed(rooms):
    from engines.benchmark.workers import check_agreement

    _, _, benchmark_work = rooms

    class Saying:
        def __init__(self, value):
            self.value = value

        def ask(self, _):
            return self.value, 0.1

    workers = {"vaejax": Saying(-100.0), "jax-loop": Saying(-101.0)}
    with pytest.raises(RuntimeError, match="jax-loop gives -101 where vaejax gives -100: not timed"):
        check_agreement(benchmark_work.WORK["aevb"], workers)
    workers["jax-loop"] = Saying(-100.3)
    check_agreement(benchmark_work.WORK["aevb"], workers)


def test_multiplications_by_hand(rooms):
    _, _, benchmark_work = rooms
    aevb = benchmark_work.WORK["aevb"]
    decoder = 20 * 500 + 500 * 784
    assert benchmark_work.multiplications(aevb) == 100 * (2 * 784 * 500 + 3 * 500 * 40 + 3 * decoder)
    conv = benchmark_work.WORK["conv"]._replace(hidden_sizes=(4, 8), image_shape=(8, 8, 3), latent_dim=2, batch_size=1)
    # One convolution to 4x4 places, one dense layer and two linear maps, and back.
    assert benchmark_work.multiplications(conv) == (
        2 * 16 * (16 * 3 * 4) + 3 * (64 * 8 + 8 * 4) + 3 * (2 * 8 + 8 * 64 + 16 * (16 * 4 * 3))
    )


@pytest.mark.slow
def test_the_command_leaves_its_rows(rooms, tmp_path, capsys):
    benchmark, benchmark_run, _ = rooms
    words = ["--work", "aevb", "--systems", "vaejax", "jax-loop", "--repeats", "2", "--seconds", "0.05"]
    benchmark_run.run(benchmark.parse([*words, "--runs-dir", str(tmp_path), "--name", "run"]))
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["system"] for row in rows] == ["vaejax", "jax-loop"]
    for row in rows:
        assert row["work"] == "aevb"
        for name in ("examples_per_second", "peak_bytes", "ratio_to_vaejax", "fraction_of_floor"):
            assert np.isfinite(row[name])
            assert row[name] > 0
    assert rows[0]["ratio_to_vaejax"] == 1
    assert "examples/s" in capsys.readouterr().out


@pytest.mark.slow
def test_programs_for_accelerators_are_those_that_are_measured(rooms, monkeypatch):
    """They trace, with the shapes of their work."""
    from engines.benchmark import compiled

    _, _, benchmark_work = rooms
    monkeypatch.setattr(compiled, "WORK", {name: small(work) for name, work in benchmark_work.WORK.items()})
    monkeypatch.setattr(compiled, "MANY", small(compiled.MANY)._replace(num_samples=6))
    monkeypatch.setattr(compiled, "CHUNK", 3)
    programs = compiled.programs(("aevb", "likelihood", "cost"))
    assert list(programs)[:2] == ["aevb", "likelihood"]
    assert len(programs) == 5
    shapes = {name: jax.eval_shape(each.function, *each.arguments) for name, each in programs.items()}
    assert shapes["aevb"][1].bound.shape == (3,)
    assert shapes["aevb, population of 16"][1].bound.shape == (16, 3)
    assert shapes["likelihood"].estimate.shape == (10,)


def test_what_does_not_fit_is_said(rooms):
    from engines.benchmark import compiled

    row = {"device": "v5e:2x2", "work": "much", "limits": None, "kernels": None, "fits": False, "spare_bytes": -(2**31)}
    text = compiled.table("v5e:2x2", [row | {"memory_bytes": {"temporaries": 18 * 2**30}, "seconds": 3.0}])
    assert "v5e:2x2, compiled, not run" in text
    assert "no, 2.0 GiB short" in text


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the compilers of accelerators")
def test_the_command_compiles_for_a_tpu(rooms, tmp_path, monkeypatch, capsys):
    from engines.benchmark import compiled

    benchmark, _, benchmark_work = rooms
    one = compiled.program_of(small(benchmark_work.WORK["aevb"])._replace(batch_size=8, chunk=30))
    monkeypatch.setattr(compiled, "programs", lambda chosen: {"one": one, "four": one._replace(num_devices=4)})
    words = ["--devices", "v5e:2x2", "--work", "aevb", "--runs-dir", str(tmp_path), "--name", "run"]
    compiled.run(benchmark.parse(words))
    rows = json.loads((tmp_path / "run" / "compiled.json").read_text())
    assert [(row["work"], row["num_devices"], row["all_reduces"]) for row in rows] == [("one", 1, 0), ("four", 4, 1)]
    assert all(row["fits"] and row["passes"] == 30 and row["host_transfers"] == 0 for row in rows)
    assert "v5e:2x2, compiled, not run" in capsys.readouterr().out


@pytest.mark.slow
def test_parts_are_measured(rooms, tmp_path, capsys):
    from engines.benchmark import parts

    _, _, benchmark_work = rooms
    works = [small(benchmark_work.WORK[name]) for name in ("iwae", "likelihood")]
    with jax.numpy_dtype_promotion("standard"):  # optax
        parts.run(tmp_path, 2, works)
    rows = json.loads((tmp_path / "parts.json").read_text())
    assert [row["work"] for row in rows] == ["iwae", "likelihood"]
    assert all(seconds > 0 for row in rows for seconds in row.values() if seconds != row["work"])
    assert ("adam" in rows[0], "adam" in rows[1]) == (True, False)
    assert "at a large one's rate" in capsys.readouterr().out


def test_parts_have_every_product(rooms, monkeypatch):
    """The multiplications of the products that are timed are those by which the floor is calculated."""
    from engines.benchmark import parts

    _, _, benchmark_work = rooms
    for name in parts.NAMES:
        work = benchmark_work.WORK[name]
        inputs, weights, gradients = parts.factors(work)
        each = [x.shape[0] * weight.size for x, weight in zip(inputs, weights, strict=True)]
        times = [1 if of_layer is None else 2 + of_layer[1] for of_layer in gradients]
        total = parts.pieces(work) * sum(number * size for number, size in zip(times, each, strict=True))
        assert total == pytest.approx(benchmark_work.multiplications(work), rel=1e-3)
        assert len(parts.products(inputs[:1], weights[:1], gradients[:1])) == times[0]


@pytest.mark.slow
def test_costs_are_measured_and_drawn(rooms, tmp_path, capsys):
    from engines.benchmark import cost as benchmark_cost

    values = {"batch size": (10, 30, 1000), "latent dimension": (2, 3, 4)}
    benchmark_cost.run(tmp_path, 2, values)
    rows = json.loads((tmp_path / "cost.json").read_text())
    assert [(row["axis"], row["value"]) for row in rows] == [(axis, v) for axis, both in values.items() for v in both]
    assert rows[2]["seconds"] > 3 * rows[0]["seconds"]
    assert rows[2]["work_bytes"] > 20 * rows[0]["work_bytes"]
    assert rows[2]["seconds"] > 3 * rows[5]["seconds"]
    assert is_picture(tmp_path / "cost.png")
    assert "slope of the larger half" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--work", "aevbb"), ["'aevbb' is unknown; did you mean aevb?"]),
        (("--systems", "torch"), ["'torch' is unknown; did you mean torch-eager"]),
        (("--repeats", "0"), ["--repeats must be at least 1; got 0"]),
        (("--seconds", "0"), ["--seconds must be a positive number; got 0.0"]),
        (("--devices", "h10"), ["device must be one of a100, h100, ", "got 'h10': did you mean h100"]),
    ],
)
def test_refused(rooms, monkeypatch, capsys, options, words):
    error = refusal(main_of("benchmark"), monkeypatch, capsys, *options)
    for word in words:
        assert word in error


@pytest.fixture
def optimized():
    """Programs as users compile them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the compilers of accelerators")
@pytest.mark.parametrize(("name", "most"), [("aevb", 51), ("iwae", 85)])
def test_steps_compiled_for_a_gpu_are_held_to_their_kernels(rooms, optimized, name, most):
    """No condition and nothing that waits for the host; one kernel more is a change that wants a reason."""
    from engines.benchmark import compiled

    found = compiled.row("h100", compiled.program_of(rooms[-1].WORK[name]))
    assert found["host_transfers"] == 0
    assert found["kernels"] <= most


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the compilers of accelerators")
def test_arrays_compiled_for_a_tpu_are_hardly_padded(rooms, optimized):
    """28 x 28 pixels in tiles of 8 x 128 would take five times their bytes."""
    from engines.benchmark import compiled

    program = compiled.program_of(rooms[-1].WORK["aevb"])
    leaves = [
        leaf
        for leaf in jax.tree.leaves(program.arguments)
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    ]
    logical = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert compiled.row("v5e:2x2", program)["memory_bytes"]["arguments"] < 1.3 * logical


@pytest.mark.slow
def test_own_choices_are_measured(rooms, tmp_path, capsys):
    from engines.benchmark import choices

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        choices.run(tmp_path, 2, choices.Sizes(2, 2, 16, 3, 1))
    rows = json.loads((tmp_path / "choices.json").read_text())
    assert [row["unit"] for row in rows] == 4 * ["times"] + ["nats"] + 2 * ["s"]
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
    assert "16 small VAEs, one after another / in one program" in capsys.readouterr().out


def test_a_ratio_is_of_the_first_over_the_second(rooms, monkeypatch):
    from engines.benchmark import choices
    from engines.harness.rows import interval

    monkeypatch.setattr(choices, "seconds_of", lambda call: call())
    found = choices.ratio(choices.Pair("a pair", lambda: 6.0, lambda: 3.0), 4)
    assert [found[name] for name in ("value", "low", "high")] == pytest.approx([2, 2, 2])
    # The standard error of 1, 2 and 3 is 1 / sqrt(3); 4.303 is the quantile of Student's t with 2 degrees of freedom.
    assert interval([1.0, 2.0, 3.0])["high"] == pytest.approx(2 + 4.302653 / 3**0.5, rel=1e-6)


def test_a_warm_start_has_the_programs_of_a_cold_one(rooms, monkeypatch):
    from engines.benchmark import choices

    asked = []
    monkeypatch.setattr(choices, "seconds_to_first_step", lambda kept: asked.append(kept) or float(len(asked)))
    cold, warm = choices.starts(choices.Sizes(num_starts=2))
    assert asked[0] == asked[1] != asked[2] == asked[3]
    assert (cold["low"], cold["high"], warm["low"], warm["high"]) == (1, 3, 2, 4)


def test_a_recipe_has_the_schedules_of_train(rooms):
    from engines.benchmark import quality, systems_jax
    from engines.train.config import PRESETS

    with jax.numpy_dtype_promotion("standard"):
        quick, longer = (quality.work_of(name, PRESETS[name], "train.npy").recipe for name in quality.RECIPES)
    # Up to 5e-3 in 500 of 4,000 steps and down on a line; from 2e-3 down on a cosine in 30,000 steps.
    for step, expected in ((0, 0), (250, 2.5e-3), (500, 5e-3), (2250, 2.5e-3), (3999, 5e-3 / 3500)):
        assert quick.rates[step] == pytest.approx(expected, rel=1e-4, abs=1e-9)
    for step, expected in ((0, 2e-3), (10_000, 1.5e-3), (15_000, 1e-3)):
        assert longer.rates[step] == pytest.approx(expected, rel=1e-4)
    assert (len(quick.rates), len(longer.rates)) == (4_000, 30_000)
    assert (quick.betas == 1).all()
    assert longer.betas[[0, 2_500, 5_000, 29_999]] == pytest.approx([0, 0.5, 1, 1])
    assert float(systems_jax.schedule_of(quick.rates)(jax.numpy.array(250))) == pytest.approx(2.5e-3)


def test_seconds_to_a_level_are_between_the_marks(rooms):
    from engines.benchmark import quality

    row = {"seconds": [1.0, 3.0, 7.0], "log_likelihood": [-120.0, -100.0, -95.0]}
    found = [quality.seconds_to(row, level) for level in (-130, -120, -110, -100, -99, -95)]
    assert found == pytest.approx([1, 1, 2, 3, 3.8, 7])
    assert np.isnan(quality.seconds_to(row, -94))


@pytest.mark.slow
def test_quality_is_watched_while_systems_train(rooms, tmp_path, monkeypatch, capsys):
    from engines.benchmark import quality
    from engines.train.config import PRESETS

    images = (np.random.default_rng(0).random((300, 28, 28)) > 0.7).astype(np.float32)
    monkeypatch.setattr(quality.data, "load", lambda name, split: quality.data.Dataset(images, None, name, split, ""))
    short = {"num_steps": 60, "learning_rate": (0.02,), "kl_warmup_steps": 9, "hidden_sizes": (8,)}
    short["learning_rate_warmup_steps"] = 2
    monkeypatch.setattr(quality, "PRESETS", {k: dataclasses.replace(PRESETS[k], **short) for k in quality.RECIPES})
    for name, value in (("NUM_MARKS", 3), ("NUM_IMAGES", 20), ("NUM_SAMPLES", 5)):
        monkeypatch.setattr(quality, name, value)
    systems = ("vaejax", *(["torch-eager"] if importlib.util.find_spec("torch") else []))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        quality.run(tmp_path, systems)
    rows = json.loads((tmp_path / "quality.json").read_text())
    assert [(row["recipe"], row["system"]) for row in rows] == [(r, s) for r in quality.RECIPES for s in systems]
    for row in rows:
        assert row["steps"] == [20, 40, 60]
        assert np.diff(row["seconds"]).min() > 0
        assert row["log_likelihood"][-1] > row["log_likelihood"][0]  # it learns
    # The same steps on the same images from the same weights: what differs is the order and the noise.
    by_system = [row["log_likelihood"][-1] for row in rows if row["recipe"] == quality.RECIPES[0]]
    assert max(by_system) - min(by_system) < 0.05 * abs(by_system[0])
    assert is_picture(tmp_path / "quality.png")
    assert "binarized_mnist_quick: seconds of training" in capsys.readouterr().out
    assert not (tmp_path / "train.npy").exists()


def test_ratios_are_of_pairs_of_measurements(rooms):
    _, benchmark_run, benchmark_work = rooms
    row = {"work": "aevb", "examples_per_second": 1.0, "spread": 0.0, "peak_bytes": 0, "fraction_of_floor": 0.5}
    row |= {"seconds_to_start": 1.0}
    rows = [row | {"system": "vaejax", "seconds_per_unit": [1.0, 10.0]}]
    rows.append(row | {"system": "jax-loop", "seconds_per_unit": [2.0, 20.0]})
    assert "2.00 [2.00, 2.00] x" in benchmark_run.table(benchmark_work.WORK["aevb"], rows)
    once = [row | {"seconds_per_unit": row["seconds_per_unit"][:1]} for row in rows]
    assert "2.00 x" in benchmark_run.table(benchmark_work.WORK["aevb"], once)  # no interval of one measurement


def test_quality_without_mnist_is_left_out(rooms, tmp_path, monkeypatch, capsys):
    from engines.benchmark import quality

    def missing(name, split):
        raise FileNotFoundError(name)

    monkeypatch.setattr(quality.data, "load", missing)
    quality.run(tmp_path, ("vaejax",))
    assert "quality is left out: binarized_mnist is not prepared" in capsys.readouterr().out


def test_quality_of_other_systems_is_left_out(rooms, tmp_path, monkeypatch, capsys):
    from engines.benchmark import quality

    images = quality.data.Dataset(np.zeros((2, 28, 28), np.float32), None, "binarized_mnist", "train", "")
    monkeypatch.setattr(quality.data, "load", lambda name, split: images)
    quality.run(tmp_path, ("numpyro",))
    assert "quality is left out: it is measured of vaejax, torch-eager" in capsys.readouterr().out
