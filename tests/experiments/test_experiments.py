"""The command line: what it leaves behind, every kind of option, stopping, killing and resuming, and what it refuses.

Runs that are not about start-up, signals or exit codes happen in this process, under the strict settings of
conftest.py. All but the first compile with few optimizations, since they take some tens of steps only.
"""

import importlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import EXPERIMENTS, is_picture, main_of, refusal

from vaejax import training
from vaejax.training import checkpoints

SHORT = ("--num-steps", "20", "--eval-samples", "10")
TINY = ("--hidden-sizes", "8", *SHORT)
# 100 reports, and a checkpoint at each where a run is disturbed.
LONG = ("--hidden-sizes", "16", "--num-steps", "100", "--eval-samples", "10")
OFTEN = (*LONG, "--checkpoint-seconds", "0")
OPTIONS = """--dataset --data-dir --manual-dir --binarization --model --latent-dim --hidden-sizes --likelihood
    --objective --estimator --baseline --kl --num-samples --beta --kl-warmup-steps --batch-size --num-steps
    --learning-rate --learning-rate-schedule --optimizer --seed --eval-samples --runs-dir --name --resume
    --preset""".split()
RESULT_KEYS = {
    *("test_elbo", "test_log_likelihood", "standard_error", "num_samples", "train_seconds", "compile_seconds"),
    *("examples_per_second", "num_parameters", "dataset", "num_test_examples"),
}
TIMES = {"train_seconds", "compile_seconds", "examples_per_second", "seconds"}


@pytest.fixture(scope="module")
def cli(experiments):
    """The modules of experiments/ that are tested here."""
    from engines.train import config, run

    return config, run


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The environment of a command that is started many times: few optimizations, and compiled programs are kept."""
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **kept}


def command(*options, script="train.py"):
    return [sys.executable, EXPERIMENTS / script, *map(str, options)]


def run(*options, env, returncode=0, script="train.py", cwd=None):
    done = subprocess.run(command(*options, script=script), env=env, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == returncode, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def run_here(cli, *options):
    train, training_run = cli
    return training_run.run(train.parse([str(option) for option in options]))


def rows(folder):
    """The complete lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def result(folder):
    return json.loads((folder / "result.json").read_text())


def without_times(values):
    return {name: value for name, value in values.items() if name not in TIMES}


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def final_state(cli, folder):
    """The arrays of the last checkpoint, verified and read as a resumed run reads them."""
    from engines.train import build

    train, _ = cli
    config = json.loads((folder / "config.json").read_text())
    several = {name: tuple(config[name]) for name in ("hidden_sizes", "beta", "learning_rate")}
    config = train.Config(**{**config, **several})
    vae = build.build_model(config, (8, 8))
    optimizer = build.build_optimizer(config, config.learning_rate[0], build.build_estimator(config))
    like = jax.eval_shape(lambda: training.init_state(vae.init(jax.random.key(0)), optimizer))
    return checkpoints.restore(folder / "checkpoints", like, config=config.compared)


def check_same_run(cli, folder, other):
    """Parameters, optimizer state, reports and test numbers, all bit for bit; nothing half-written is left."""
    states = [jax.tree.leaves(final_state(cli, each)) for each in (folder, other)]
    for mine, theirs in zip(*states, strict=True):
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()
    assert [without_times(row) for row in rows(folder)] == [without_times(row) for row in rows(other)]
    assert without_times(result(folder)) == without_times(result(other))
    assert sorted(path.name for path in folder.rglob("*.npz")) == sorted(path.name for path in other.rglob("*.npz"))
    assert not [path for path in folder.rglob("*") if ".tmp" in path.name or ".old" in path.name]


def check_left_behind(folder, num_steps, pictures=("learning_curve", "training_strip", "reconstructions", "samples")):
    """Everything that a finished run leaves, in good order."""
    reports = rows(folder)
    steps = [row["step"] for row in reports]
    assert steps == sorted(set(steps))
    assert steps[-1] == num_steps
    assert all(np.isfinite(value) for row in reports for value in row.values())
    assert {"step", "seconds", "bound", "elbo", "kl", "reconstruction"} <= reports[0].keys()
    assert {"validation_elbo", "validation_iwae"} & reports[0].keys()
    values = result(folder)
    assert values.keys() >= RESULT_KEYS
    assert all(np.isfinite(value) for value in values.values() if not isinstance(value, str))
    assert checkpoints.steps(folder / "checkpoints")[-1] == num_steps
    assert list((folder / "snapshots").glob("step_*.npz"))
    assert {path.stem for path in folder.glob("*.png")} == set(pictures)
    for path in folder.glob("*.png"):
        assert is_picture(path)
    return values


def wait_until(condition, process, seconds=120):
    """Poll; the process has to be alive for as long as it is waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode} before what was waited for"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.003)


# The default command.


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """The command with no option but small sizes, as a user starts it: its folder, output, and seconds to line one."""
    runs = tmp_path_factory.mktemp("default")
    start = time.monotonic()
    with subprocess.Popen(
        command(*TINY, "--runs-dir", runs), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        first = process.stdout.readline()
        seconds = time.monotonic() - start
        rest = process.stdout.read()
    assert process.returncode == 0, rest
    return runs / "digits", first, rest, seconds


@pytest.mark.slow
def test_default_command_leaves_everything_behind(default_run, cli):
    folder, _, _, _ = default_run
    values = check_left_behind(
        folder, 20, ("learning_curve", "training_strip", "reconstructions", "samples", "manifold", "calibration")
    )
    assert values["dataset"] == "digits"
    assert values["num_samples"] == 10
    assert values["num_test_examples"] == 256
    assert values["num_parameters"] == 64 * 8 + 8 + 8 * 4 + 4 + 2 * 8 + 8 + 8 * 64 + 64
    assert values["train_seconds"] > 0
    assert values["compile_seconds"] > 0
    assert values["test_elbo"] < values["test_log_likelihood"] < 0
    assert 0 < values["standard_error"] < 1
    assert len(rows(folder)) == 20
    train, _ = cli
    written = json.loads((folder / "config.json").read_text())
    expected = train.parse([*TINY, "--runs-dir", str(folder.parent)])
    assert written == json.loads(json.dumps(vars(expected)))


@pytest.mark.slow
def test_default_command_speaks_at_once_and_reports_in_words(default_run):
    folder, first, rest, seconds = default_run
    assert "digits" in first
    assert seconds < 5
    values = result(folder)
    last = rest[rest.index("test log p(x)") :]
    words = (
        f"{values['test_log_likelihood']:.2f}",
        f"{values['standard_error']:.2f}",
        "standard error",
        "nats per example",
        "K = 10",
        f"{values['test_elbo']:.2f}",
        f"{folder}/result.json",
        f"the pictures in {folder}",
        "learning_curve.png",
    )
    for word in words:
        assert word in last


@pytest.mark.slow
def test_plots_redraws_from_the_folder_alone(default_run, quick, tmp_path):
    folder = shutil.copytree(default_run[0], tmp_path / "moved")
    names = {path.name for path in folder.glob("*.png")}
    for path in folder.glob("*.png"):
        path.unlink()
    printed = run(folder, env=quick, script="plots.py", cwd=tmp_path).stdout.split()
    assert {pathlib.Path(line).name for line in printed} == names
    assert all(is_picture(folder / name) for name in names)


def test_plots_of_a_folder_without_a_finished_run(quick, tmp_path):
    assert "folder of a finished run" in run(tmp_path, env=quick, script="plots.py", returncode=2).stderr


def test_first_line_needs_no_jax(tmp_path):
    code = "import sys; from engines.train import config; config.parse([]); "
    code += "assert not {'jax', 'numpy', 'matplotlib'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=EXPERIMENTS)


def test_help_names_every_option(quick):
    text = run("--help", env=quick).stdout
    for option in OPTIONS:
        assert option in text


@pytest.mark.parametrize(
    ("schedule", "after"), [("constant", [1.0, 1.0, 1.0]), ("linear", [1.0, 0.5, 0.0]), ("cosine", [1.0, 0.5, 0.0])]
)
def test_the_learning_rate_rises_before_it_falls(cli, schedule, after):
    train, build = cli[0], importlib.import_module("engines.train.build")
    words = ("--learning-rate-warmup-steps", "4", "--num-steps", "10", "--optimizer", "sgd")
    config = train.parse([*words, "--learning-rate-schedule", schedule])
    optimizer = build.build_optimizer(config, 2.0, build.build_estimator(config))
    state, rates, gradient = optimizer.init(jnp.zeros(())), [], -jnp.ones(())
    for _ in range(11):
        with jax.numpy_dtype_promotion("standard"):  # as `training.ascend` does
            update, state = optimizer.update(gradient, state)
        rates.append(float(update))
    np.testing.assert_allclose(rates[:5], [0.0, 0.5, 1.0, 1.5, 2.0])
    np.testing.assert_allclose([rates[4], rates[7], rates[10]], 2 * np.array(after), atol=1e-6)


def test_presets_are_changed_by_options(cli):
    train, _ = cli
    config = train.parse(["--preset", "aevb", "--dataset", "digits", "--optimizer", "sgd"])
    assert (config.dataset, config.optimizer) == ("digits", "sgd")
    assert (config.batch_size, config.num_samples, config.patience) == (100, 1, 10)
    assert train.parse(["--preset=binarized_mnist"]).latent_dim == 50
    assert train.parse(["--preset=binarized_mnist_quick"]).activation == "gelu"
    long = train.parse(["--preset", "mnist_two_layers"])
    assert (long.num_latents, long.prior, long.objective, long.eval_samples) == (80, "flow", "iwae", 5000)
    assert train.parse([]) == train.Config(hidden_sizes=(200, 200))
    assert train.parse(["--model", "conv"]).hidden_sizes == (32, 64, 256)


# Kinds of options: together these runs take every choice of every option once.

REAL = ("--binarization", "none", "--likelihood")
VARIANTS = {
    "bernoulli posterior, enumerated": (
        "--posterior",
        "bernoulli",
        "--latent-dim",
        "4",
        "--estimator",
        "enumerate_support",
    ),
    "conv, iwae, categorical posterior, vimco": (
        *("--model", "conv", "--hidden-sizes", "3", "4", "8", "--objective", "iwae", "--num-samples", "3"),
        *("--latent-dim", "3", "--optimizer", "rmsprop", "--learning-rate-schedule", "linear", "--activation", "relu"),
        *("--posterior", "categorical", "--num-categories", "3", "--estimator", "vimco"),
    ),
    "linear on digits, nvil": (
        *("--model", "linear", "--binarization", "threshold", "--estimator", "score_function", "--kl", "analytic"),
        *("--baseline", "nvil", "--latent-dim", "1", "--optimizer", "sgd"),
    ),
    "linear_gaussian, leave-one-out, entropy": (
        *("--dataset", "linear_gaussian", "--model", "linear", *REAL, "gaussian_shared_std", "--optimizer", "adagrad"),
        *("--estimator", "score_function", "--baseline", "leave_one_out", "--num-samples", "2", "--kl", "entropy"),
        *("--learning-rate-schedule", "constant"),
    ),
    "two_gaussians, moving average, sampled": (
        *("--dataset", "two_gaussians", *REAL, "gaussian", "--estimator", "score_function", "--kl", "sampled"),
        *("--baseline", "moving_average", "--beta", "2", "--kl-warmup-steps", "10", "--activation", "elu"),
        *("--latent-dim", "1"),
    ),
    "spiral, measure-valued, entropy": (
        *("--dataset", "spiral", *REAL, "gaussian_fixed_std", "--likelihood-std", "0.1", "--kl", "entropy"),
        *("--activation", "softplus", "--seed", "3", "--batch-size", "50", "--estimator", "measure_valued"),
    ),
    "given the label, half missing": ("--condition-on", "label", "--missing", "0.5"),
    "conv given the label, free bits": (
        *("--model", "conv", "--hidden-sizes", "3", "8", "--condition-on", "label", "--objective", "free_bits"),
        *("--posterior", "bernoulli", "--estimator", "enumerate_support"),
    ),
    "digits, gaussian, iwae, doubly reparameterized": (
        *(*REAL, "gaussian", "--objective", "iwae", "--estimator", "doubly_reparameterized"),
        *("--num-samples", "2", "--activation", "gelu", "--hidden-sizes", "8", "4"),
    ),
    "aggressive, free bits": (
        *("--inference", "aggressive", "--max-encoder-steps", "4", "--batch-size", "50"),
        *("--objective", "free_bits", "--free-bits", "3"),
    ),
    "variational EM, Renyi": (*("--inference", "em", "--objective", "renyi", "--alpha", "-1", "--num-samples", "2"),),
    "exact EM": (
        *("--dataset", "linear_gaussian", "--model", "linear", *REAL, "gaussian_shared_std", "--inference", "em"),
    ),
    "best std": (*("--dataset", "spiral", *REAL, "gaussian_shared_std", "--objective", "optimal_std"),),
    "layers, gated, averaged": (
        *("--model", "hierarchical", "--upper-latent-dims", "3", "2", "--kl", "sampled", "--activation", "gated"),
        *("--averages", "0.9", "--prior", "flow", "--prior-layers", "2"),
    ),
    "pseudo-inputs, accumulated": (
        *("--prior", "vamp", "--prior-components", "5", "--objective", "iwae", "--num-samples", "2"),
        *("--accumulate-steps", "2", "--max-gradient-norm", "5", "--validation-samples", "3"),
    ),
    "flow": (
        *("--posterior", "flow", "--kl", "sampled", "--latent-dim", "3", "--likelihood", "continuous_bernoulli"),
        *("--binarization", "none"),
    ),
    "8-bit pixels, convolutions below a layer": (
        *("--model", "conv", "--hidden-sizes", "3", "8", "--upper-latent-dims", "2", "--kl", "sampled"),
        *("--likelihood", "discretized_logistic_mixture", "--binarization", "levels"),
    ),
    "counts": ("--likelihood", "zero_inflated_negative_binomial", "--binarization", "levels"),
    "full covariance": ("--posterior", "full-covariance", "--latent-dim", "3"),
    "mixture, weight decay": (
        *("--prior", "mixture", "--prior-components", "3", "--kl", "sampled", "--weight-decay", "0.01"),
    ),
    "MMD, cycles": (*("--objective", "info_vae", "--mmd-weight", "10", "--kl-cycle-steps", "10", "--beta", "0.5"),),
}


# What others below or above have in common with these.
MORE = ("conv, iwae, categorical posterior, vimco", "best std", "two_gaussians, moving average, sampled")
MORE += ("conv given the label, free bits", "digits, gaussian, iwae, doubly reparameterized", "full covariance")
MORE += ("spiral, measure-valued, entropy", "linear_gaussian, leave-one-out, entropy", "linear on digits, nvil")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, marks=pytest.mark.exhaustive if name in MORE else pytest.mark.slow, id=name)
        for name, options in VARIANTS.items()
    ],
)
def test_variants(cli, tmp_path, options, capsys):
    assert run_here(cli, *(SHORT if "linear" in options else TINY), *options, "--runs-dir", tmp_path) == 0
    (folder,) = tmp_path.iterdir()
    pictures = {"learning_curve", "training_strip", "reconstructions", "samples"}
    config = json.loads((folder / "config.json").read_text())
    given_label, missing = config["condition_on"] == "label", config["missing"] > 0
    named = ("dataset", "latent_dim", "posterior", "condition_on", "prior", "upper_latent_dims")
    if [config[name] for name in named] == ["digits", 2, "gaussian", "nothing", "standard", []]:
        pictures |= {"manifold"}
    pictures |= {"imputations"} if missing else set()
    pictures |= set() if given_label or missing else {"calibration"}
    assert ("smallest_rank_p_value" in result(folder)) != (given_label or missing)
    check_left_behind(folder, 20, pictures)
    reports = rows(folder)
    assert reports[0]["bound"] != reports[-1]["bound"]
    # What is maximised is the ELBO unless a weight or another bound says otherwise.
    weighted = config["beta"] != [1.0] or config["objective"] in ("iwae", "renyi", "free_bits", "info_vae")
    assert weighted == any(abs(row["bound"] - row["elbo"]) > 1e-3 for row in reports)
    assert "K = 10" in capsys.readouterr().out


AUTOENCODERS = {
    "denoising, grey pixels": (
        *("--binarization", "none", "--corruption", "gaussian", "--corruption-level", "0.3"),
        *("--error", "cross_entropy", "--patience", "100"),
    ),
    "linear, masked points": (
        *("--dataset", "linear_gaussian", *REAL, "gaussian_fixed_std", "--model", "linear"),
        *("--corruption", "masking", "--latent-dim", "3"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("options", AUTOENCODERS.values(), ids=AUTOENCODERS)
def test_autoencoders(cli, tmp_path, options, capsys):
    sizes = SHORT if "linear" in options else TINY
    options = (*sizes, "--objective", "reconstruction", *options, "--runs-dir", tmp_path)
    assert run_here(cli, *options) == 0
    (folder,) = tmp_path.iterdir()
    config = json.loads((folder / "config.json").read_text())
    assert config["posterior"] == "point"
    reports = rows(folder)
    assert {"step", "seconds", "bound", "error", "squared_error", "validation_bound"} <= reports[0].keys()
    assert reports[-1]["error"] < reports[0]["error"]
    values = result(folder)
    assert values["num_steps"] == 20
    # The errors of the test images, from what the pictures show.
    with np.load(folder / "pictures.npz") as arrays:
        errors = ((arrays["originals"] - arrays["reconstructions"]) ** 2).reshape(len(arrays["originals"]), -1).sum(1)
    if len(errors) == values["num_test_examples"]:
        np.testing.assert_allclose(values["test_squared_error"], errors.mean(), rtol=1e-5)
        np.testing.assert_allclose(values["standard_error"], errors.std(ddof=1) / len(errors) ** 0.5, rtol=1e-4)
        assert values["test_error"] > values["test_squared_error"]  # a cross-entropy
    printed = capsys.readouterr().out
    assert f"{values['test_squared_error']:.4f} ± {values['standard_error']:.4f} per example" in printed
    assert "an autoencoder has none" in printed
    for name in ("learning_curve", "training_strip", "reconstructions", "samples"):
        assert is_picture(folder / f"{name}.png")


@pytest.mark.slow
def test_aevb_stops_by_its_rule(cli, tmp_path, capsys):
    options = ("--preset", "aevb", "--dataset", "digits", "--hidden-sizes", "8", "--eval-samples", "10")
    options = (*options, "--num-steps", "400", "--patience", "5", "--tolerance", "20", "--runs-dir", tmp_path)
    assert run_here(cli, *options) == 0
    elbos = [row["validation_elbo"] for row in rows(tmp_path / "digits")]
    assert len(elbos) < 100
    done = [n for n in range(6, 101) if max(elbos[:n][-5:]) < max(elbos[:n][:-5]) + 20]
    assert done[0] == len(elbos)
    assert result(tmp_path / "digits")["num_steps"] == 4 * len(elbos)


@pytest.mark.slow
def test_a_prepared_image_set(cli, tmp_path, prepared_tfds):
    jax.config.update("jax_disable_most_optimizations", False)  # 10,000 test images are more work than to compile
    tiny = ("--num-steps", "20", "--hidden-sizes", "8", "--eval-samples", "10", "--batch-size", "20")
    try:
        assert run_here(cli, "--dataset", "mnist", *tiny, "--data-dir", prepared_tfds, "--runs-dir", tmp_path) == 0
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    (folder,) = tmp_path.iterdir()
    pictures = ("learning_curve", "training_strip", "reconstructions", "samples", "calibration", "manifold")
    values = check_left_behind(folder, 20, pictures)
    assert values["num_test_examples"] == 10_000
    assert -700 < values["test_log_likelihood"] < -150


# Stopping, killing, resuming. Each is compared with one run that nothing disturbed.


@pytest.fixture(scope="module")
def undisturbed(quick, tmp_path_factory):
    """A run from start to end, which compiles its programs itself and leaves them in the cache for other processes."""
    runs = tmp_path_factory.mktemp("undisturbed")
    run(*LONG, "--runs-dir", runs, env=quick)
    return runs / "digits"


def stopped_by(number, folder, env, *options):
    """Start or resume a run, send a signal after some reports, and return what it said."""
    before = len(rows(folder))
    with subprocess.Popen(
        command(*OFTEN, "--runs-dir", folder.parent, *options),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        wait_until(lambda: len(rows(folder)) >= before + 5, process)
        process.send_signal(number)
        said = process.stdout.read()
    assert process.returncode == 128 + number, said
    return said


@pytest.fixture(scope="module")
def stopped(quick, undisturbed, tmp_path_factory):
    """A run that SIGTERM stopped, and what it said. Tests copy the folder before they touch it."""
    assert any(pathlib.Path(quick["JAX_COMPILATION_CACHE_DIR"]).iterdir())  # what the undisturbed run compiled
    folder = tmp_path_factory.mktemp("stopped") / "digits"
    said = stopped_by(signal.SIGTERM, folder, quick)
    return folder, said


@pytest.mark.slow
def test_stopped_runs_resume_to_the_same_parameters(cli, quick, undisturbed, stopped, tmp_path):
    folder = shutil.copytree(stopped[0], tmp_path / "digits")
    step = rows(folder)[-1]["step"]
    assert 5 <= step < 100
    assert checkpoints.steps(folder / "checkpoints")[-1] == step
    assert f"stopped by SIGTERM at step {step}" in stopped[1]
    # What it says to type continues with it, here after a second stop.
    said = stopped_by(signal.SIGINT, folder, quick, "--resume")
    assert f"resumed {folder} at step {step}" in said
    assert "stopped by SIGINT" in said
    (advice,) = (line for line in said.splitlines() if line.startswith("continue with: python experiments/train.py"))
    done = run(*advice.split()[4:], env=quick)
    assert "test log p(x)" in done.stdout
    check_same_run(cli, folder, undisturbed)


@pytest.mark.slow
def test_finished_run_resumed_reports_again(cli, undisturbed, tmp_path, capsys):
    folder = shutil.copytree(undisturbed, tmp_path / "digits")
    assert run_here(cli, *LONG, "--resume", "--runs-dir", tmp_path) == 0
    said = capsys.readouterr().out
    assert "at step 100" in said
    assert f"{result(undisturbed)['test_log_likelihood']:.2f}" in said
    check_same_run(cli, folder, undisturbed)


@pytest.mark.slow
def test_a_run_that_starts_from_another(cli, undisturbed, tmp_path):
    # A step too small for any weight to move: what is measured is the other run, with its numbers.
    options = (*LONG, "--num-steps", "1", "--learning-rate", "1e-30", "--start-from", undisturbed, "--name", "tuned")
    assert run_here(cli, *options, "--runs-dir", tmp_path) == 0
    folder = tmp_path / "tuned"
    assert result(folder)["test_log_likelihood"] == result(undisturbed)["test_log_likelihood"]
    assert len(rows(folder)) == 1
    trained = checkpoints.restore_params(undisturbed / "checkpoints")
    chex.assert_trees_all_equal(checkpoints.restore_params(folder / "checkpoints"), trained)
    words = "--start-from needs the folder of a run of the same model.*as decoder/network/layer_0/kernel"
    with pytest.raises(ValueError, match=words):
        run_here(cli, *options, "--latent-dim", "3", "--runs-dir", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_resume_under_other_options_is_refused(cli, stopped, tmp_path, has_checkpoint):
    folder = shutil.copytree(stopped[0], tmp_path / "digits")
    if not has_checkpoint:
        shutil.rmtree(folder / "checkpoints")
    before = content(folder)
    options = (*LONG, "--resume", "--runs-dir", tmp_path, "--latent-dim", "3", "--beta", "2")
    with pytest.raises(ValueError, match=r"--latent-dim was 2, is 3; --beta was 1\.0, is 2\.0.*another --name"):
        run_here(cli, *options)
    assert content(folder) == before


@pytest.mark.slow
def test_damaged_checkpoint_is_refused(cli, stopped, tmp_path):
    folder = shutil.copytree(stopped[0], tmp_path / "digits")
    good, damaged = checkpoints.steps(folder / "checkpoints")
    path = max((folder / "checkpoints" / f"{damaged:08d}" / "state").rglob("*"), key=lambda path: path.stat().st_size)
    original = path.read_bytes()
    path.write_bytes(original[:100] + bytes([original[100] ^ 1]) + original[101:])
    before = content(folder)
    with pytest.raises(ValueError, match=rf"{path.name} is damaged.*{good}.*or delete .*{damaged:08d}"):
        run_here(cli, *LONG, "--resume", "--runs-dir", tmp_path)
    assert content(folder) == before


@pytest.mark.slow
def test_lost_metrics_are_refused(cli, stopped, tmp_path):
    folder = shutil.copytree(stopped[0], tmp_path / "digits")
    (folder / "metrics.jsonl").write_text("".join((folder / "metrics.jsonl").read_text().splitlines(True)[:-1]))
    with pytest.raises(ValueError, match=r"metrics\.jsonl to reach step.*it ends at step"):
        run_here(cli, *LONG, "--resume", "--runs-dir", tmp_path)


@pytest.mark.slow
def test_full_disk_keeps_the_last_good_checkpoint(cli, quick, undisturbed, stopped, tmp_path):
    folder = shutil.copytree(stopped[0], tmp_path / "digits")
    (*_, last) = checkpoints.steps(folder / "checkpoints")
    options = (*OFTEN, "--resume", "--runs-dir", tmp_path)
    # No file may grow beyond 6 kB. Set by a process of its own, since JAX warns when this one forks.
    code = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000)); "
    code += "os.execv(sys.argv[1], sys.argv[1:])"
    limited = [sys.executable, "-c", code, *map(str, command(*options))]
    done = subprocess.run(limited, env=quick, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "the disk or a quota is full" in done.stderr
    assert f"The checkpoint of step {last} is still good" in done.stderr
    assert int(final_state(cli, folder).step) == last
    assert run_here(cli, *LONG, "--resume", "--runs-dir", tmp_path) == 0  # compiled by this process, not the commands'
    check_same_run(cli, folder, undisturbed)


@pytest.mark.slow
def test_killed_again_and_again(cli, quick, undisturbed, tmp_path):
    """In start-up, between reports and in the middle of saving; the program that continues comes from the cache."""
    folder = tmp_path / "digits"
    random = np.random.default_rng(0)
    moments = random.permutation(["start"] * 2 + ["training"] * 3 + ["saving"] * 3)
    reached, left_half_written = [], 0
    for moment in moments:
        options = ["--resume"] if folder.exists() else []
        written = (folder / "metrics.jsonl").stat() if (folder / "metrics.jsonl").exists() else None
        with subprocess.Popen(
            command(*OFTEN, *options, "--runs-dir", tmp_path, "--name", "digits"),
            env=quick,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            if moment == "start":
                time.sleep(random.uniform(0, 2.5))
            else:
                wait_until(lambda written=written: changed(folder / "metrics.jsonl", written), process)
                time.sleep(random.uniform(0, 0.25))
            if moment == "saving":
                wait_until(lambda: list((folder / "checkpoints").glob(".tmp-*")), process)
                time.sleep(random.uniform(0, 0.02))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        reached.append(max(checkpoints.steps(folder / "checkpoints"), default=0))
        left_half_written += bool(list((folder / "checkpoints").glob(".tmp-*")))
    assert reached == sorted(reached)
    assert len(set(reached)) >= 4
    assert reached[-1] < 100
    assert left_half_written >= 1
    run(*LONG, "--resume", "--runs-dir", tmp_path, env=quick)
    check_same_run(cli, folder, undisturbed)


def changed(path, before):
    """Whether a file has grown or been replaced, and then grown: the rewriting at the start of a run does not count."""
    now = path.stat() if path.exists() else None
    return now is not None and now.st_size > 0 and (before is None or now.st_size > before.st_size)


# What is refused: exit code 2, one line, nothing left behind.

TWO_GAUSSIANS = ("--dataset", "two_gaussians")
REFUSED = {
    "a KL of layers in closed form": (("--model", "hierarchical"), ["needs --kl sampled; got analytic"]),
    "a KL of a learned prior in closed form": (("--prior", "vamp"), ["needs --kl sampled; got analytic"]),
    "free bits of layers": (
        ("--model", "hierarchical", "--objective", "free_bits"),
        ["--model hierarchical with --posterior gaussian needs --objective elbo, iwae or renyi; got free_bits"],
    ),
    "pseudo-inputs of another prior": (("--prior-components", "3"), ["belongs to --prior mixture or vamp"]),
    "pseudo-inputs of a label": (
        ("--prior", "vamp", "--kl", "sampled", "--condition-on", "label"),
        ["--prior vamp needs --condition-on nothing; got label"],
    ),
    "Gaussians over coins": (
        ("--prior", "mixture", "--kl", "sampled", "--posterior", "bernoulli"),
        ["--prior mixture needs --posterior gaussian, full_covariance or flow; got bernoulli"],
    ),
    "half of one number": (
        ("--prior", "flow", "--kl", "sampled", "--latent-dim", "1"),
        ["--prior-layers must be left out", "a flow moves one half of z by the other"],
    ),
    "a flow in closed form": (("--posterior", "flow"), ["and --posterior flow needs --kl sampled; got analytic"]),
    "free bits of a full covariance": (
        ("--posterior", "full_covariance", "--objective", "free_bits"),
        ["--posterior full_covariance needs --objective elbo, iwae, renyi or info_vae; got free_bits"],
    ),
    "layers of an mlp": (("--upper-latent-dims", "3"), ["belongs to --model hierarchical or conv; got mlp"]),
    "8-bit pixels of black and white": (
        ("--likelihood", "categorical_pixels"),
        ["--likelihood categorical_pixels needs --binarization levels; got dynamic"],
    ),
    "a beta at its edges": (
        ("--likelihood", "beta", "--binarization", "none"),
        ["--likelihood beta needs --binarization dequantized; got none"],
    ),
    "coins of 256 sides": (
        ("--binarization", "levels"),
        ["--binarization levels needs --likelihood categorical_pixels, discretized_logistic_mixture, poisson,"],
    ),
    "averages of EM": (
        ("--averages", "0.9", "--inference", "em"),
        ["--averages 0.9 needs --inference amortized; got em"],
    ),
    "an average of nothing new": (("--averages", "1"), ["--averages must be at least 0 and below 1; got 1.0"]),
    "decay of Adagrad": (("--weight-decay", "0.1", "--optimizer", "adagrad"), ["belongs to --optimizer adam"]),
    "more pseudo-inputs than images": (
        ("--prior", "vamp", "--kl", "sampled", "--prior-components", "5000"),
        ["the number of examples must be", "5000"],
    ),
    "a bound of a point": (("--posterior", "point"), ["--posterior point needs --objective reconstruction; got elbo"]),
    "a reconstruction of coins": (
        ("--objective", "reconstruction", "--posterior", "bernoulli"),
        ["--objective reconstruction needs --posterior point; got bernoulli"],
    ),
    "corruption under a bound": (
        ("--corruption", "gaussian"),
        ["--corruption belongs to --objective reconstruction; got elbo"],
    ),
    "samples of a point": (
        ("--objective", "reconstruction", "--num-samples", "5"),
        ["--num-samples has no effect on --objective reconstruction; got 5: leave it out"],
    ),
    "a level of no corruption": (
        ("--objective", "reconstruction", "--corruption-level", "0.1"),
        ["--corruption-level has no effect on --objective reconstruction without --corruption gaussian or masking"],
    ),
    "points by a sigmoid": (
        ("--objective", "reconstruction", "--dataset", "spiral", "--binarization", "none"),
        ["--error squared_error, --likelihood bernoulli", "expects pixels in [0, 1]", "gaussian_fixed_std"],
    ),
    "a std that is not learned": (("--objective", "optimal_std"), ["needs --likelihood gaussian_shared_std"]),
    "bits of another objective": (("--free-bits", "1"), ["--free-bits belongs to --objective free_bits; got elbo"]),
    "negative bits": (("--objective", "free_bits", "--free-bits", "-1"), ["--free-bits must be at least 0; got -1"]),
    "two schedules": (("--kl-warmup-steps", "5", "--kl-cycle-steps", "5"), ["two schedules of one weight"]),
    "too few for an encoder that runs ahead": (
        ("--inference", "aggressive", "--max-encoder-steps", "20"),
        ["2,100 examples", "digits has 1,285", "fewer --max-encoder-steps"],
    ),
    "encoder steps of usual training": (("--max-encoder-steps", "3"), ["belongs to --inference aggressive"]),
    "a weight of Renyi's": (("--objective", "renyi", "--beta", "2"), ["--beta has no effect on --objective renyi"]),
    "a form of free bits": (
        ("--objective", "free_bits", "--kl", "sampled"),
        ["--kl has no effect on --objective free_bits"],
    ),
    "gradients of EM": (
        *(("--inference", "em", "--model", "linear", "--likelihood", "gaussian_shared_std", "--learning-rate", "1"),),
        ["--learning-rate has no effect on the exact EM of a linear model; got 1.0: leave it out"],
    ),
    "a point to infer": (
        ("--objective", "reconstruction", "--inference", "em"),
        ["--objective reconstruction needs --inference amortized; got em"],
    ),
    "negative noise": (
        ("--objective", "reconstruction", "--corruption", "gaussian", "--corruption-level", "-1"),
        ["std of gaussian_noise", "got -1.0"],
    ),
    "entropy of points": (
        (*TWO_GAUSSIANS, *REAL, "gaussian_fixed_std", "--objective", "reconstruction", "--error", "cross_entropy"),
        ["cross_entropy needs a decoder with likelihood='bernoulli'"],
    ),
    "the score left in a KL in closed form": (
        ("--estimator", "sticking_the_landing"),
        ["--estimator sticking_the_landing of the ELBO needs --kl sampled; got analytic"],
    ),
    "a linear model of coins": (
        ("--model", "linear", "--posterior", "bernoulli"),
        ["--model linear needs --posterior gaussian or point; got bernoulli"],
    ),
    "categories of a Gaussian": (("--num-categories", "3"), ["--num-categories belongs to --posterior categorical"]),
    "coins under the pathwise gradient": (
        ("--posterior", "bernoulli"),
        ["got q = BernoulliLogits. Use score_function(baseline='leave_one_out')"],
    ),
    "unknown dataset": (("--dataset", "mnit"), ["'mnit'", "'mnist'", "digits"]),
    "no latents": (("--latent-dim", "0"), ["--latent-dim must be at least 1; got 0"]),
    "no samples": (("--num-samples", "0"), ["--num-samples must be at least 1; got 0"]),
    "no steps": (("--num-steps", "0"), ["--num-steps must be at least 1; got 0"]),
    "too many steps": (("--num-steps", "9999999999"), ["--num-steps", "2^31", "9999999999"]),
    "seed": (("--seed", "-1"), ["--seed must be at least 0; got -1"]),
    "rise": (("--learning-rate-warmup-steps", "6000"), ["warmup-steps must be below --num-steps, 6000; got 6000"]),
    "learning rate": (("--learning-rate", "nan"), ["--learning-rate must be positive and finite; got nan"]),
    "weight": (("--beta", "inf"), ["--beta", "inf"]),
    "large batch": (("--batch-size", "1286"), ["1286", "1285"]),
    "real numbers": (TWO_GAUSSIANS, ["two_gaussians", "[0, 1]", "--binarization none --likelihood gaussian"]),
    "real numbers, Bernoulli": (
        (*TWO_GAUSSIANS, "--binarization", "none"),
        ["exactly 0 or 1", "--binarization none --likelihood gaussian"],
    ),
    "grey pixels": (("--binarization", "none"), ["exactly 0 or 1", "--binarization dynamic"]),
    "leave one out": (
        ("--estimator", "score_function", "--baseline", "leave_one_out"),
        ["--num-samples must be 2 or more for --baseline leave_one_out; got 1"],
    ),
    "baseline of pathwise": (("--baseline", "leave_one_out"), ["--estimator score_function", "got pathwise"]),
    "std of another likelihood": (("--likelihood-std", "2"), ["gaussian_fixed_std", "got bernoulli"]),
    "negative std": (
        ("--likelihood", "gaussian_fixed_std", "--likelihood-std", "-1", "--binarization", "none"),
        ["std must be a number above 0; got -1.0"],
    ),
    "nothing to resume": (("--resume",), ["resume", "there is none", "--runs-dir"]),
    "no such run": (("--resume", "--name", "other"), ["other", "it is not there", "--name"]),
    "no channels": (("--model", "conv", "--hidden-sizes", "500"), ["--hidden-sizes", "32 64 256", "got 500"]),
    "images for conv": (
        (*TWO_GAUSSIANS, *REAL, "gaussian", "--model", "conv", "--hidden-sizes", "4", "8"),
        ["(height, width)", "(2,)"],
    ),
    "empty layer": (("--hidden-sizes", "0"), ["positive integers", "0"]),
    "empty channels": (
        ("--model", "conv", "--hidden-sizes", "0", "1"),
        ["--hidden-sizes must be positive integers; got 0"],
    ),
    "negative units": (("--model", "conv", "--hidden-sizes", "8", "-8"), ["--hidden-sizes must be positive", "got -8"]),
    "more latents than a machine counts": (("--latent-dim", "9" * 12), ["--latent-dim must be below 2^31; got 9999"]),
    "more latents than memory holds": (
        ("--latent-dim", "100000000"),
        ["--latent-dim must be smaller", "1,073,741,824"],
    ),
    "more samples than a machine counts": (("--num-samples", "1" + "0" * 20), ["--num-samples must be below 2^31"]),
    "more samples than memory holds": (
        ("--objective", "iwae", "--num-samples", "1000000"),
        ["--num-samples must be smaller, or --batch-size, or --chunk-size given"],
    ),
    "more evaluation than a life": (("--eval-samples", "1" + "0" * 20), ["--eval-samples must be at most 10,000,000"]),
    "a weight of no single": (("--beta", "1e39"), ["--beta must be 0, or from 1.2e-38 to 3.4e38 in size", "1e+39"]),
    "a std of no single": (
        ("--likelihood", "gaussian_fixed_std", "--likelihood-std", "1e-46", "--binarization", "none"),
        ["--likelihood-std must be 0, or from 1.2e-38", "1e-46"],
    ),
    "bits of no single": (
        ("--objective", "free_bits", "--free-bits", "1e39"),
        ["--free-bits must be 0, or from 1.2e-38"],
    ),
    "an order of no single": (("--objective", "renyi", "--alpha", "1e39"), ["--alpha must be 0, or from 1.2e-38"]),
    "layers of a linear model": (
        ("--model", "linear", "--hidden-sizes", "10", "20"),
        ["--hidden-sizes belongs to --model mlp, conv or hierarchical; got linear"],
    ),
    "an activation of a linear model": (
        ("--model", "linear", "--activation", "relu"),
        ["--activation belongs to --model mlp, conv or hierarchical; got linear"],
    ),
    "chunks of more than there is": (
        ("--num-samples", "2", "--chunk-size", "3"),
        ["--chunk-size must be below --num-samples, 2, to have an effect; got 3"],
    ),
    "a run elsewhere": (("--name", "../../x"), ["--name must be without [ ] \\ * ? / ~", "'../../x'"]),
    "a run at the root": (("--name", "/x"), ["--name must be without", "'/x'"]),
    "a run in the folder above": (("--name", ".."), ["--name must be the name of a folder in", "'..'"]),
    "a run without a name": (("--name", ""), ["--name must be the name of a folder in", "''"]),
    "a run at home": (("--name", "~"), ["--name must be without", "'~'"]),
    "a pattern": (("--name", "a[b]"), ["--name must be without", "'a[b]'"]),
    "a backslash": (("--name", "a\\b"), ["--name must be without"]),
    "no run to start from": (("--start-from", "/nowhere"), ["--start-from needs the folder of a run", "found none"]),
    "one start for several runs": (("--start-from", "x", "--seeds", "2"), ["--start-from has no effect on several"]),
    "not prepared": (
        ("--dataset", "mnist"),
        ["not prepared", "train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "--manual-dir"],
    ),
    "no folder": (("--dataset", "mnist", "--manual-dir", "/nowhere"), ["/nowhere", "train-images-idx3-ubyte.gz"]),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(cli, monkeypatch, capsys, tmp_path, no_type_hook, options, words):
    data_dir = ("--data-dir", tmp_path / "tfds")
    error = refusal(main_of("train"), monkeypatch, capsys, *options, *data_dir, "--runs-dir", tmp_path / "runs")
    for word in words:
        assert word in error
    assert not (tmp_path / "runs").exists()


def test_name_that_is_taken(cli, monkeypatch, capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    error = refusal(main_of("train"), monkeypatch, capsys, "--name", "mine", "--runs-dir", tmp_path)
    assert "mine exists" in error
    assert "--resume" in error
    assert "--name" in error


def test_runs_dir_that_is_a_file(cli, monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    error = refusal(main_of("train"), monkeypatch, capsys, *TINY, "--runs-dir", tmp_path / "file")
    assert "Not a directory" in error


@pytest.mark.parametrize("options", [("--frobnicate", "3"), ("--preset", "none"), ("--model", "rnn")])
def test_unknown_options_are_errors(quick, tmp_path, options):
    error = run(*options, env=quick, returncode=2, cwd=tmp_path).stderr
    assert options[0] in error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        # The parameters are as large as they can be, and the bound is not finite.
        (
            ("--optimizer", "sgd", "--learning-rate", "1e6", "--checkpoint-seconds", "0"),
            r"good checkpoint, of step \d+,",
        ),
        # The first step's bound is finite, the parameters after it are not: they must not be saved.
        (("--optimizer", "sgd", "--learning-rate", "1e38", "--checkpoint-seconds", "0"), "there was no checkpoint yet"),
    ],
)
def test_diverging_run_says_where(cli, tmp_path, options, says):
    options = (*TINY, *TWO_GAUSSIANS, *REAL, "gaussian", *options, "--runs-dir", tmp_path)
    with pytest.raises(ValueError, match=rf"finite bound; got (-inf|nan) at step \d+: .*--learning-rate.*{says}"):
        run_here(cli, *options)
    reports = rows(tmp_path / "two_gaussians")
    assert all(np.isfinite(value) for row in reports for value in row.values())
    assert checkpoints.steps(tmp_path / "two_gaussians" / "checkpoints") == [row["step"] for row in reports]


def test_a_folder_of_runs_with_a_pattern_in_its_name(cli, monkeypatch, capsys, tmp_path):
    for name in ("runs[1]", "a\\b"):
        error = refusal(main_of("train"), monkeypatch, capsys, *TINY, "--runs-dir", tmp_path / name)
        assert error.startswith("error: --runs-dir must be without [ ] \\ * ?")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metrics.jsonl", "{}\n", "expected line 1 of .*metrics.jsonl to report"),
        ("metrics.jsonl", "3\n", "expected line 1 of .*metrics.jsonl to report.*got 3"),
        ("metrics.jsonl", '{"step": 2, "validation_elbo": 1.0}\n{"step": 1, "validation_elbo": 1.0}\n', "line 2 of"),
        ("metrics.jsonl", '{"step": 1, "validation_elbo": "high"}\n', "line 1 of .*in numbers"),
        ("config.json", "[]", "to hold the options of the run.*got \\[\\]"),
        ("config.json", "{", "to hold the options of the run.*got no JSON"),
    ],
)
def test_files_that_are_not_as_a_run_left_them(experiments, tmp_path, name, text, words):
    from engines.harness import run_folder

    (tmp_path / name).write_text(text)
    read = {
        "metrics.jsonl": run_folder.read_metrics,
        "config.json": lambda folder: run_folder.check_same_options(folder, {"latent_dim": 2}),
    }
    with pytest.raises(ValueError, match=f"{words}.*put the file back as it was"):
        read[name](tmp_path)


def test_an_unknown_platform_is_one_line(quick, tmp_path):
    done = run(*TINY, "--runs-dir", tmp_path, env={**quick, "JAX_PLATFORMS": "frob"}, returncode=2)
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: JAX_PLATFORMS=frob: ")
    assert "such as cpu" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_belongs_to_one_process(experiments, tmp_path):
    from engines.harness import run_folder

    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    code = "import pathlib, sys; from engines.harness import run_folder; run_folder.claim(pathlib.Path(sys.argv[1]))"
    claimed = [sys.executable, "-c", code, folders[0]]
    run_folder.claim(folders[0])
    run_folder.claim(folders[0])  # its own does not count
    other = subprocess.run(claimed, cwd=EXPERIMENTS, capture_output=True, text=True)
    assert "another one that runs writes into it" in other.stderr
    run_folder.claim(folders[1])
    subprocess.run(claimed, cwd=EXPERIMENTS, check=True)
    assert not [path for folder in folders for path in folder.iterdir()]


def test_free_names(cli, tmp_path):
    from engines.harness import run_folder

    assert run_folder.choose_folder(tmp_path, None, "emnist/balanced", False) == tmp_path / "emnist_balanced"
    for name in ("digits", "digits-2"):
        (tmp_path / name).mkdir()
    assert run_folder.choose_folder(tmp_path, None, "digits", False) == tmp_path / "digits-3"
    assert run_folder.choose_folder(tmp_path, None, "digits", True) == tmp_path / "digits-2"
