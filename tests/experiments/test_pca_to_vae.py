"""From PCA to the VAE: what the command leaves behind, part by part, what it refuses, and its exact numbers."""

import functools
import gzip
import json
import math
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import EXPERIMENTS, is_picture, main_of, refusal
from sklearn.decomposition import PCA as SklearnPCA

from vaejax import autoencoders, data, models, training

ROW = {"part", "model", "quantity", "value", "unit", "standard_error", "known", "note"}
PARTS = ("pca", "linear", "linear_vae", "deep", "denoising", "score", "bottleneck", "difference", "generator", "game")


@pytest.fixture(scope="module")
def cli(experiments):
    """The modules of experiments/ that are tested here."""
    from engines.family import config, run

    return config, run


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """A file of images that vary in all directions."""
    path = tmp_path_factory.mktemp("faces") / "faces.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (40, 6, 5), np.uint8))
    return path


@pytest.fixture(scope="module")
def run_part(cli, faces, tmp_path_factory):
    """Runs a part on digits with two steps of training, once: `name -> (its folder, results.json)`."""
    done = {}

    def run(name):
        if name not in done:
            runs = tmp_path_factory.mktemp(name)
            run_here(cli, "--parts", name, "--effort", 0.001, "--runs-dir", runs, "--name", "run", "--faces", faces)
            done[name] = runs / "run", json.loads((runs / "run" / "results.json").read_text())
        return done[name]

    return run


def run_here(cli, *options):
    pca_to_vae, family_run = cli
    family_run.run(pca_to_vae.parse([str(option) for option in options]))


def value(results, model, quantity):
    """Of the one row of that model and quantity."""
    (row,) = (row for row in results["rows"] if (row["model"], row["quantity"]) == (model, quantity))
    return row["value"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_a_part_leaves_everything_behind(run_part, name):
    folder, results = run_part(name)
    pictures = sorted(path.name for path in folder.glob("*.png"))
    left = {path.name for path in folder.iterdir()} - set(pictures)
    assert left == {"config.json", "results.json", "table.md", f"{name}.json", f"{name}.npz"}
    assert pictures
    assert all(is_picture(folder / picture) for picture in pictures)
    assert results["dataset"] == "digits"
    assert results["seconds"].keys() == {name}
    assert results["rows"]
    for row in results["rows"]:
        assert row.keys() == ROW
        assert row["part"] == name
        assert row["value"] is not None or row["note"].startswith("refused: "), row
    with np.load(folder / f"{name}.npz") as arrays:
        for array in arrays.values():
            assert array.dtype.kind in "US" or np.isfinite(array).all()


def test_parts_are_the_same_everywhere(cli):
    from engines.family import pictures as family_plots

    pca_to_vae, family_run = cli
    assert pca_to_vae.PARTS == tuple(family_run.PARTS) == tuple(family_plots.DRAWN) == PARTS


@pytest.mark.slow
def test_pca_is_that_of_scikit_learn(run_part):
    _, results = run_part("pca")
    train, test = (data.load("digits", split).images for split in ("train+validation", "test"))
    train, test = train.reshape(len(train), -1).astype(np.float64), test.reshape(len(test), -1).astype(np.float64)
    for k in (2, 10, 20):
        theirs = SklearnPCA(k, svd_solver="full").fit(train)
        errors = ((theirs.inverse_transform(theirs.transform(test)) - test) ** 2).sum(axis=1)
        (row,) = (row for row in results["rows"] if row["model"] == f"PCA, k = {k}" and "error per" in row["quantity"])
        assert row["value"] == pytest.approx(errors.mean(), rel=1e-9)
        assert row["standard_error"] == pytest.approx(errors.std(ddof=1) / math.sqrt(len(test)), rel=1e-9)
    # Theirs divides by n - 1, and that is all the difference.
    theirs = SklearnPCA(10, svd_solver="full").fit(train * math.sqrt(1 - 1 / len(train)))
    theirs.mean_ = train.mean(axis=0)
    assert value(results, "probabilistic PCA, k = 10", "log p(x) of test images") == pytest.approx(theirs.score(test))
    identity = "|total variance - reconstruction error - projected variance| / total variance"
    assert value(results, "PCA, k = 10", identity) < 1e-10
    assert value(results, "eigenfaces", "faces") == 40


@pytest.mark.slow
def test_linear_autoencoders_are_held_against_exact_numbers(run_part, cli):
    folder, results = run_part("linear")
    names = ("plain", "uniform L2", "non-uniform L2", "rotation augmentation", "nested dropout")
    best = value(results, "PCA, k = 5", "squared error per test image")
    for name in names:
        rows = [row for row in results["rows"] if row["model"] == f"linear autoencoder, {name}"]
        error, excess, distance, alignment = rows
        assert error["known"] == pytest.approx(best, rel=1e-6)
        assert excess["value"] == pytest.approx(100 * (error["value"] / best - 1), rel=1e-4)
        assert (excess["known"] > 0) == ("L2" in name or "rotation" in name)
        assert distance["known"] == 0
        assert alignment["known"] == (None if name in ("plain", "uniform L2") else 0)
    with np.load(folder / "linear.npz") as arrays:
        assert arrays["names"].tolist() == list(names)
        assert arrays["axes"].shape == (6, 5, 8, 8)
        assert arrays["path_0"][:, 0].tolist() == [0, 1, 2]
        assert arrays["path_0"][-1, 1:] == pytest.approx([row["value"] for row in results["rows"][3:5]])


def test_what_a_penalty_costs(cli, x64):
    """At the optimum that the formula is about the gradient is zero, and the error is what it says."""
    from engines.family import linear as family_linear

    x = np.random.default_rng(0).normal(size=(50, 2, 3)) * [[3.0, 2.5, 2.0], [1.0, 0.5, 0.2]]
    exact = autoencoders.pca(x, 2)
    x = x - x.mean(axis=0)
    exact = exact._replace(mean=jnp.zeros((2, 3)))
    model = autoencoders.linear_autoencoder((2, 3), 2)
    weights = np.array([0.5, 1.0])
    axes = jnp.sqrt(1 - weights / exact.explained_variance)[:, None] * exact.components.reshape(2, 6)
    layers = ("encoder", axes.T, jnp.zeros(2)), ("decoder", axes, jnp.zeros(6))
    params = {
        name: {"network": {"layer_0": {"kernel": kernel, "bias": bias}}, "head": {}} for name, kernel, bias in layers
    }
    params["prior"] = {}
    objective = autoencoders.make_reconstruction(model, penalties=(autoencoders.nonuniform_l2(weights),))
    gradient, info = jax.jit(jax.grad(objective, has_aux=True))(params, jax.random.key(0), x)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) < 1e-12
    plain = ((x - exact.decode(exact.encode(x))) ** 2).sum((1, 2)).mean()
    assert family_linear.lost_to_penalty(exact, x, weights) == pytest.approx(float(info.squared_error - plain))


def test_small_images_and_distances_between_matrices(cli):
    from engines.family import linear as family_linear
    from engines.family.pictures import linear as linear_plots

    images = np.random.default_rng(0).normal(size=(3, 28, 22))
    small = family_linear.shrunk(images)
    assert small.shape == (3, 7, 5)
    np.testing.assert_allclose(small[1, 2, 3], images[1, 8:12, 12:16].mean())
    np.testing.assert_array_equal(family_linear.shrunk(images[:, :8, :8]), images[:, :8, :8])
    one = np.array([[3.0, 0.0], [0.0, 4.0]])
    assert family_linear.apart(np.stack([one, one, one])) == 0
    assert family_linear.apart(np.stack([one, 2 * one])) == pytest.approx((1 + 0.5) / 2)
    axes = np.array([[[0.0, 2.0]], [[-3.0, 1.0]]])
    assert linear_plots.towards(axes, np.array([[[1.0, 0.0]], [[0.0, 1.0]]])).tolist() == [[[0, 2]], [[3, -1]]]


@pytest.mark.slow
def test_the_elbo_is_below_its_maximum(run_part):
    folder, results = run_part("linear_vae")
    maximum = value(results, "probabilistic PCA", "mean log p(x)")
    images = data.load("digits", "train+validation").images[:1000].reshape(1000, -1).astype(np.float64)
    theirs = SklearnPCA(20, svd_solver="full").fit(images * math.sqrt(1 - 1 / 1000))
    theirs.mean_ = images.mean(axis=0)
    assert maximum == pytest.approx(theirs.score(images), rel=1e-9)
    with np.load(folder / "linear_vae.npz") as arrays:
        for name in ("closed-form gradient", "sampled gradient"):
            steps, elbo = arrays[name.replace(" ", "_")].T
            assert steps.tolist() == [0, 1, 2]
            assert elbo[0] < elbo[-1] < maximum
            model = f"linear VAE, 20 latents, {name}"
            assert value(results, model, "ELBO") == elbo[-1]
            assert value(results, model, "maximum - ELBO") == pytest.approx(maximum - elbo[-1])


def test_an_optimizer_that_whitens(cli):
    """A step of steepest ascent in whitened coordinates is the gradient times the inverse of the covariance."""
    from engines.family import linear_vae as family_linear_vae

    rng = np.random.default_rng(0)
    images = rng.normal(size=(30, 2, 2)).astype(np.float32)
    vae = models.linear_vae((2, 2), 3)
    gradient = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), vae.init(jax.random.key(0)))
    optimizer = family_linear_vae.whitened(optax.sgd(0.1), images, ridge=0.2)
    updates = optimizer.update(gradient, optimizer.init(gradient))[0]
    covariance = np.cov(images.reshape(30, 4), rowvar=False) + 0.2 * np.eye(4)
    kernel = gradient["encoder"]["network"]["layer_0"].pop("kernel")
    moved = updates["encoder"]["network"]["layer_0"].pop("kernel")
    np.testing.assert_allclose(moved, -0.1 * np.linalg.solve(covariance, kernel), rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -0.1 * b, rtol=1e-6), updates, gradient)


@pytest.mark.parametrize(("num_steps", "rate"), [(2000, 2.5e-3), (40, 1e-2)])
def test_stds_fall_at_a_rate_of_their_own(cli, num_steps, rate):
    """Adam's steps are as long as its rate while the gradient stays the same."""
    from engines.family import linear_vae as family_linear_vae

    gradient = {"head": {"log_std": jnp.ones(2)}, "layer": {"kernel": jnp.ones(3)}}
    optimizer = family_linear_vae.annealed(num_steps)
    with jax.numpy_dtype_promotion("standard"):  # as in a train step: optax counts steps in integers
        updates = optimizer.update(gradient, optimizer.init(gradient))[0]
    np.testing.assert_allclose(updates["head"]["log_std"], -rate, rtol=1e-4)
    np.testing.assert_allclose(updates["layer"]["kernel"], -5e-3, rtol=1e-4)


def made_up_part(name, counts):
    """A part that leaves the number of times that it was run."""
    from engines.harness import rows

    def part(setting):
        counts[name] = counts.get(name, 0) + 1
        return rows.Result([rows.row(name, "runs", counts[name], "1")], {})

    return part


def test_an_interrupted_run_continues_where_it_was(cli, tmp_path, monkeypatch, capsys):
    from engines.family import pictures

    parts = cli[1].PARTS

    def interrupted(setting):
        raise KeyboardInterrupt

    counts = {}
    for name in ("pca", "linear"):
        monkeypatch.setitem(pictures.DRAWN, name, lambda arrays, rows: {})
    monkeypatch.setitem(parts, "pca", made_up_part("pca", counts))
    part = made_up_part("linear", counts)
    monkeypatch.setitem(parts, "linear", interrupted)
    options = ["--runs-dir", str(tmp_path), "--effort", "0.5"]
    monkeypatch.setattr(sys, "argv", ["command", *options, "--parts", "linear", "pca"])
    with pytest.raises(SystemExit) as stopped:
        main_of("pca_to_vae")()
    assert stopped.value.code == 130
    assert "--resume" in capsys.readouterr().err
    folder = tmp_path / "family-digits"
    assert {path.name for path in folder.iterdir()} == {"config.json", "pca.json", "pca.npz"}

    for changed in (("--effort", "0.25"), ("--seed", "1"), ("--faces", "other.npz")):
        error = refusal(main_of("pca_to_vae"), monkeypatch, capsys, *options, "--parts", "linear", "--resume", *changed)
        assert f"{changed[0]} was " in error
        assert f", is {changed[1]}" in error

    monkeypatch.setitem(parts, "linear", part)
    run_here(cli, *options, "--parts", "linear", "--resume")
    assert json.loads((folder / "config.json").read_text())["parts"] == ["pca", "linear"]
    assert "With --effort 0.5: these are not the README's numbers" in capsys.readouterr().out
    assert (folder / "table.md").read_text().startswith("With --effort 0.5: ")
    run_here(cli, *options, "--parts", "pca", "linear", "--resume")
    assert "pca: done before\nlinear: done before" in capsys.readouterr().out
    assert counts == {"pca": 1, "linear": 1}
    results = json.loads((folder / "results.json").read_text())
    assert [(row["part"], row["value"]) for row in results["rows"]] == [("pca", 1), ("linear", 1)]
    assert results["seconds"].keys() == {"pca", "linear"}
    assert results["effort"] == 0.5


REFUSED = {
    "unknown part": (("--parts", "pca", "linear_vea"), ["'linear_vea'", "did you mean linear_vae?", "bottleneck"]),
    "no parts": (("--parts",), ["--parts must name at least one of pca, linear", "got none"]),
    "no effort": (("--effort", "0"), ["--effort must be a positive number; got 0"]),
    "negative effort": (("--effort", "-1"), ["--effort must be a positive number; got -1"]),
    "endless effort": (("--effort", "inf"), ["--effort must be a positive number; got inf"]),
    "seed": (("--seed", "-1"), ["--seed must be from 0 to 2^31 - 1; got -1"]),
    "name taken": (("--name", "taken"), ["taken exists", "--resume", "another --name"]),
    "nothing to resume": (("--resume",), ["to resume; there is none"]),
    "no such run": (("--resume", "--name", "other"), ["other to resume; it is not there"]),
    "unknown dataset": (("--dataset", "mnit"), ["'mnit'", "'mnist'"]),
    "not prepared": (("--dataset", "mnist"), ["not prepared", "train-images-idx3-ubyte.gz", "--manual-dir"]),
    "points": (("--dataset", "two_gaussians"), ["expected grey images with labels", "two_gaussians", "(2,)"]),
    "faces that are not there": (("--faces", "nowhere.npz"), ["nowhere.npz"]),
    "faces in no npz file": (("--faces", __file__), ["--faces: expected an npz file", "is none"]),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_refusals(cli, tmp_path, monkeypatch, capsys, options, words):
    (tmp_path / "taken").mkdir()
    where = ("--runs-dir", tmp_path, "--data-dir", tmp_path / "nothing")
    error = refusal(main_of("pca_to_vae"), monkeypatch, capsys, *where, *options)
    assert all(word in error for word in words), error
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


NOISE = np.random.default_rng(0).uniform(0, 1, (20, 6, 5))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"faces": NOISE}, r"faces\.npz has no array of that name"),
        ({"images": np.ones((2, 3))}, r"n of at least 16, for 15 components; got \(2, 3\) in .*faces\.npz"),
        ({"images": NOISE[:5]}, r"n of at least 16, for 15 components; got \(5, 6, 5\)"),
        ({"images": NOISE - 3}, r"from 0 to 1; got values from -3 to -2"),
        ({"images": np.where(NOISE < 0.1, np.nan, NOISE)}, r"from 0 to 1; got values from nan to nan"),
        ({"images": np.ones((20, 6, 5))}, "that vary in at least 15 directions"),
    ],
)
def test_faces_that_cannot_be_used(cli, tmp_path, arrays, words):
    np.savez(tmp_path / "faces.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        cli[1].read_faces(str(tmp_path / "faces.npz"))


def test_faces_are_from_0_to_1(cli, faces):
    images = cli[1].read_faces(str(faces))
    assert images.shape == (40, 6, 5)
    assert images.dtype == np.float32
    with np.load(faces) as arrays:
        np.testing.assert_allclose(images * 255, arrays["images"], rtol=1e-6)
    assert cli[1].read_faces(None) is None


def test_first_images_are_those_of_the_original_file(cli, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 4, 3), np.uint8)
    header = np.array([0x803, 1200, 4, 3], ">u4").tobytes()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
    first_images = cli[1].first_images
    np.testing.assert_allclose(first_images(str(tmp_path), (4, 3)) * 255, pixels[:1000], rtol=1e-6)
    assert first_images(str(tmp_path), (28, 28)) is None  # the file of another dataset
    assert first_images(str(tmp_path / "nothing"), (4, 3)) is None
    assert first_images(None, (4, 3)) is None


def test_parts_are_run_in_one_order(cli):
    assert cli[0].parse([]).parts == PARTS
    assert cli[0].parse(["--parts", "game", "pca", "game"]).parts == ("pca", "game")


def test_tables(cli):
    from engines.harness import part_tables

    def row(part, model, value, error=None, known=None, unit="nats"):
        numbers = {"value": value, "standard_error": error, "known": known}
        return {"part": part, "model": model, "quantity": "a|b", **numbers, "unit": unit, "note": "n"}

    rows = [row("p", "m", 13.86591, 0.0583, 13.866), row("p", "m", None), row("q", "m", 123456.7, unit="1")]
    rows += [row("q", "m", 1234.5, 120.0), row("q", "m", 2.0, 0.0), row("q", "m", 962.38351)]
    lines = part_tables.markdown({"rows": rows}).splitlines()
    assert lines[2] == "| p | m | a\\|b, nats | 13.8659 ± 0.058 | 13.866 | n |"
    cells = [[cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")] for line in lines]
    assert [line[3] for line in cells[3:]] == ["none", "123,457", "1,234 ± 120", "2", "962.384"]
    assert [line[0:2] for line in cells[3:6]] == [["", ""], ["q", "m"], ["", ""]]
    assert cells[4][2] == "a/b"
    terminal = part_tables.terminal({"rows": rows}).splitlines()
    assert len(terminal) == 7
    assert terminal[1].split() == ["p", "m", "a|b,", "nats", "13.8659", "±", "0.058", "13.866"]


@pytest.mark.slow
def test_pictures_are_drawn_from_the_folder_without_jax(run_part, tmp_path, monkeypatch, capsys):
    names = ("pca", "linear", "linear_vae")
    for name in names:
        shutil.copytree(run_part(name)[0], tmp_path / "moved", dirs_exist_ok=True)
    pictures = {path.name for path in (tmp_path / "moved").glob("*.png")}
    for picture in pictures:
        (tmp_path / "moved" / picture).unlink()
    code = "import runpy, sys; runpy.run_module('plots', run_name='__main__'); assert 'jax' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "moved"], capture_output=True, text=True, cwd=EXPERIMENTS
    )
    assert done.returncode == 0, done.stderr
    assert {pathlib.Path(line).name for line in done.stdout.split()} == pictures
    assert all(is_picture(tmp_path / "moved" / picture) for picture in pictures)
    error = refusal(main_of("plots"), monkeypatch, capsys, tmp_path)
    assert "expected the folder of a finished run" in error


def test_first_line_needs_no_jax():
    # JAX imports numpy.
    code = "import sys; from engines.family import config; config.parse([]); assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=EXPERIMENTS)


@pytest.mark.slow
def test_training_in_calls_is_one_fit(cli):
    from engines.harness import fitting

    model = autoencoders.linear_autoencoder((3,), 2)
    objective, optimizer = autoencoders.make_reconstruction(model), optax.adam(1e-2)
    x = np.random.default_rng(0).normal(size=(2, 20, 3)).astype(np.float32)
    sizes = {"num_steps": 250, "batch_size": 5}
    params = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 2))
    first = jax.tree.map(lambda leaf: leaf[0], params)
    step = training.make_train_step(objective, optimizer)
    fit = jax.jit(lambda state, key: training.fit(step, state, key, x[0], **sizes))
    state, history = fit(training.init_state(first, optimizer), jax.random.key(1))

    trained = fitting.train(
        "it", objective, optimizer, first, jax.random.key(1), x[0], snapshots_at=(0, 0.5, 1), **sizes
    )
    assert trained.history.bound.shape == (250,)
    np.testing.assert_allclose(trained.history.bound, history.bound, rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), trained.params, state.params)
    assert trained.snapshots.keys() == {0, 126, 250}  # a call takes three steps
    assert trained.snapshots[0] is first
    assert trained.snapshots[250] is trained.params

    keys = jnp.stack([jax.random.key(1), jax.random.key(2)])
    both = fitting.train_many("them", objective, optimizer, params, keys, x, **sizes)
    np.testing.assert_allclose(both.history.bound[0], history.bound, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-6), both.params, state.params)

    with pytest.raises(ValueError, match=r"it: expected a finite objective; got nan at step 3$"):
        fitting.train("it", objective, optax.sgd(1e30), first, jax.random.key(1), x[0], **sizes)
