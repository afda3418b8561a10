"""`reproduce.py`: verdicts, the published recipes against their own words, and a row from training to its table."""

import dataclasses
import importlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import is_picture, main_of, refusal

from vaejax import data, estimators, laboratory, models, objectives
from vaejax.estimators.discrete import coupled


@pytest.fixture
def engines(experiments):
    from engines.reproduce import published, recipes, report

    return published, recipes, report


def test_names_are_unique_and_numbers_are_sure(engines):
    published, *_ = engines
    for table in published.TABLES.values():
        assert len({row.name for row in table.rows}) == len(table.rows)
        assert {row.certainty for row in table.rows} <= {"A", "B", "C", "D"}
    named = {row.name: row for row in published.TABLES["iwae"].rows}
    assert len(named) == 13
    assert named["two-layers-dynamic-iwae-50"].published == -82.90
    assert named["one-layer-fixed-iwae-50"].published == -87.10


def test_a_verdict_counts_both_errors(engines):
    published, _, report = engines
    table = published.TABLES["exemplar"]
    row = dataclasses.replace(table.rows[0], published=-84.0, published_error=0.3)
    for ours, error, expected in (
        (-82.9, 0.4, "passed"),  # 1.1 above, and twice the error is 1.0
        (-83.1, 0.4, "reached"),
        (-84.9, 0.4, "reached"),
        (-85.1, 0.4, "short"),
    ):
        assert report.verdict(table, row, ours, error) == expected
    assert report.verdict(table, dataclasses.replace(row, certainty="C"), -80.0, 0.1) == "theirs is not verified"
    assert report.verdict(table, dataclasses.replace(row, published=None), -80.0, 0.1) == "none is published"
    exact = dataclasses.replace(row, certainty="D", published_error=None)
    assert report.verdict(table, exact, -84.00001, 0.0) == "reached"
    assert "mistake" in report.verdict(table, exact, -83.9, 0.0)


def test_of_an_error_less_is_better(engines):
    published, _, report = engines
    table = published.TABLES["hinton"]
    row = dataclasses.replace(table.rows[0], published=3.0, certainty="A")
    assert [report.verdict(table, row, ours, 0.1) for ours in (2.7, 2.9, 3.3)] == ["passed", "reached", "short"]


def test_errors_are_over_seeds_where_there_are_several(engines):
    published, _, report = engines
    table = published.TABLES["iwae"]
    run = {"error": 0.7, "num_examples": 10, "num_samples": 5, "steps": 4, "share": 0.5, "words": "so"}
    runs = [run | {"value": value, "train_seconds": 60} for value in (-85.0, -87.0)]
    found = report.of_row(table, table.rows[0], runs)
    assert (found["ours"], found["standard_error"], found["error_over"]) == (-86.0, 1.0, "2 seeds")
    assert (found["share"], found["seconds"]) == (0.5, 120)
    alone = report.of_row(table, table.rows[0], runs[:1])
    assert (alone["standard_error"], alone["error_over"]) == (0.7, "10 examples")
    assert report.of_row(table, table.rows[0], runs, comparable=False)["verdict"] == "another dataset"


def test_the_stages_of_burda(engines):
    """3^(i - 1) passes at the rate of stage i, of 3,280 in all; the rates to one decimal of 1e-4."""
    _, recipes, _ = engines
    rate = recipes._stages(3280)
    rates = [1e-3, 7.2e-4, 5.2e-4, 3.7e-4, 2.7e-4, 1.9e-4, 1.4e-4, 1e-4]
    ends = np.cumsum([3**stage for stage in range(8)])
    assert ends[-1] == 3280
    for stage, end in enumerate(ends):
        np.testing.assert_allclose(rate(int(end) - 1), rates[stage], rtol=1e-6)
        if stage < 7:
            np.testing.assert_allclose(rate(int(end)), rates[stage + 1], rtol=1e-6)


def test_the_first_step_of_burdas_adam(engines):
    """By hand: the second moment starts at ones, and both are corrected for their start at step 1."""
    _, recipes, _ = engines
    optimizer = recipes._adam_from_ones(lambda count: 1e-3)
    params, grads = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([0.5, -3.0])}
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
    g = np.array([0.5, -3.0])
    second = (0.999 + 0.001 * g**2) / (1 - 0.999)
    np.testing.assert_allclose(updates["w"], -1e-3 * g / (np.sqrt(second) + 1e-4), rtol=1e-4)


@pytest.mark.parametrize("name", ["iwae", "miwae", "piwae", "ciwae", "vamp", "vae"])
def test_each_objective_has_the_samples_of_its_row(engines, name):
    published, recipes, _ = engines
    row = next(row for row in published.TABLES["miwae"].rows if row.name == name)
    recipe = recipes.ours(row)
    vae = recipes.model_of(row, recipe._replace(hidden_sizes=((4,),)), (3,), num_pseudo_inputs=2)
    objective = recipes.objective_of(row, recipe, vae, num_steps=0)
    like = jax.eval_shape(vae.init, jax.random.key(0))
    _, info = jax.eval_shape(objective, like, jax.random.key(1), jnp.ones((2, 3)))
    assert info.log_w.shape[0] == {"iwae": 50, "miwae": 64, "piwae": 64, "ciwae": 50}.get(name, 1)


REFUSED = {
    "a table": (("--table", "iwea"), "did you mean iwae?"),
    "a row": (("--rows", "one-layer-fxed"), "did you mean one-layer-fixed"),
    "minutes": (("--minutes", "0"), "--minutes must be a positive number; got 0.0"),
    "seeds": (("--seeds", "0"), "--seeds must be from 1"),
    "no text": (("--table", "lagging"), "lagging_inference_synthetic.txt, of He et al. 2019, in the folder that"),
    "no certificate": (("--table", "certificates", "--rows", "disarm-gaussian"), "did you mean"),
    "seeds of certificates": (("--table", "certificates", "--seeds", "2"), "--seeds has no effect on --table"),
    "samples of none": (("--table", "hinton", "--eval-samples", "9"), "--eval-samples has no effect on --table hinton"),
    "examples of none": (("--table", "rodeo", "--test-examples", "9"), "--test-examples has no effect on --table"),
    "images in another order": (("--table", "ppca"), "expected train-images-idx3-ubyte.gz in the folder that"),
    "settings": (("--table", "miwae", "--recipe", "published"), "needs rows whose settings are known"),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(experiments, monkeypatch, capsys, options, words):
    assert words in refusal(main_of("reproduce"), monkeypatch, capsys, *options)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--recipe", "published"), ("--table", "exemplar", "--seeds", "2")])
def test_a_row_from_training_to_its_table(experiments, monkeypatch, capsys, tmp_path, options):
    row = "mnist-hvae-vamp" if "exemplar" in options else "two-layers-dynamic-vae-1"
    words = ["reproduce.py", *options, "--rows", row, "--dataset", "digits", "--minutes", "0.005"]
    words += ["--eval-samples", "5", "--test-examples", "20", "--runs-dir", str(tmp_path), "--name", "trial"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main_of("reproduce")()
    assert ended.value.code == 0
    results = json.loads((tmp_path / "trial" / "results.json").read_text())
    (found,) = results["rows"]
    assert (found["row"], found["verdict"], found["num_samples"]) == (row, "another dataset", 5)
    assert np.isfinite(found["ours"])
    assert (found["share"] is not None) == ("published" in options)
    assert is_picture(tmp_path / "trial" / "table.png")
    assert row in (tmp_path / "trial" / "table.md").read_text()
    (tmp_path / "trial" / "table.png").unlink()
    assert importlib.import_module("plots").draw(tmp_path / "trial") == [tmp_path / "trial" / "table.png"]
    first = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*words, "--resume"])
    with pytest.raises(SystemExit):
        main_of("reproduce")()
    assert capsys.readouterr().out.splitlines()[-5:-3] == first.splitlines()[-5:-3]  # done runs stay as they are


@pytest.mark.slow
def test_the_linear_vae_stays_below_its_maximum(experiments, monkeypatch, tmp_path):
    """On 1,000 digits; two rows of one table, one of them without training."""
    found = table_of(monkeypatch, tmp_path, "ppca", "maximum", "closed-form", minutes="0.05")
    assert found["maximum"]["ours"] > found["closed-form"]["ours"] > -100
    assert found["closed-form"]["note"].endswith("below its maximum")


@pytest.mark.slow
def test_codes_of_digits(experiments, monkeypatch, tmp_path):
    """PCA's error is that of scikit-learn's."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    found = table_of(monkeypatch, tmp_path, "hinton", "pca", "deep", minutes="0.01")
    assert found["deep-autoencoder"]["ours"] > 0
    train, test = (data.load("digits", split=split).images for split in ("train+validation", "test"))
    pca = decomposition.PCA(10).fit(train.reshape(len(train), -1))
    images = test[:20].reshape(20, -1)
    errors = ((pca.inverse_transform(pca.transform(images)) - images) ** 2).sum(axis=1)
    np.testing.assert_allclose(found["pca"]["ours"], errors.mean(), rtol=1e-4)


@pytest.mark.slow
def test_text(experiments, monkeypatch, tmp_path):
    """Sequences of the published length, of few tokens; the set is not needed."""
    tokens = np.random.default_rng(0).integers(0, 5, (10_000, 4))
    np.savetxt(tmp_path / "lagging_inference_synthetic.txt", tokens, fmt="%d")
    options = ("--manual-dir", str(tmp_path))
    found = table_of(monkeypatch, tmp_path, "lagging", "vae", "aggressive", minutes="0.01", dataset=None, more=options)
    for row in found.values():
        assert row["verdict"] == "none is published"
        assert abs(row["ours"] + 4 * np.log(5)) < 0.5
        assert "rate" in row["note"]


@pytest.mark.slow
def test_bits(experiments, monkeypatch, tmp_path):
    found = table_of(monkeypatch, tmp_path, "rodeo", "mnist-disarm", minutes="0.01")["mnist-disarm-2"]
    assert 0 < found["standard_error"] < 0.1 * found["ours"]
    assert found["error_over"] == "1,000 gradients"
    assert found["share"] < 0.01
    assert found["note"].startswith("bound of 100 samples on training images -")


def test_one_weight_is_not_called_doubtful(experiments):
    from engines.reproduce import jobs

    vae = models.mlp_vae((4,), 2, (3,))
    found = jobs.likelihood(vae, vae.init(jax.random.key(0)), jnp.eye(4), 1)
    assert (found["num_samples"], found["note"]) == (1, "")


def test_the_recipe_of_bernoulli_latents_is_theirs(experiments):
    from engines.reproduce import config

    assert config.parse(["--table", "relax"]).recipe == "published"
    assert config.parse(["--table", "hinton"]).recipe == "ours"


def test_fewer_steps_are_no_verdict_on_a_variance(engines):
    published, _, report = engines
    table = published.TABLES["rodeo"]
    run = {
        "value": 1e-3,
        "error": 1e-5,
        "num_examples": 9,
        "num_samples": 0,
        "steps": 4,
        "words": "",
        "train_seconds": 1,
    }
    verdicts = [report.of_row(table, table.rows[0], [run | {"share": share}])["verdict"] for share in (0.5, 1.0)]
    assert verdicts == ["fewer steps", "passed"]
    (plain,) = (row for row in table.rows if row.name == "mnist-leave-one-out-2")
    assert report.of_row(table, plain, [run | {"share": 0.5}])["verdict"] == "none is published"
    assert report.theirs(report.of_row(table, table.rows[0], [run | {"share": 1.0}])) == "0.0137 ± 0.000411 (A)"


def test_the_variance_is_that_of_the_sum_over_a_batch(experiments):
    """One black and white image again and again: neither the batch nor its binarization adds noise."""
    from engines.reproduce import bits

    vae = models.mlp_vae((3,), 2, (4,), posterior="bernoulli")
    elbo = objectives.make_elbo(vae, estimators.disarm(), num_samples=2)
    params, x = vae.init(jax.random.key(0)), jnp.tile(jnp.array([0.0, 1.0, 1.0]), (7, 1))
    found = bits.variance_of(elbo, params, x, batch_size=5)
    moments = laboratory.gradient_moments(elbo, params, jax.random.key(1), x[:5], 4000)
    leaves = jax.tree.leaves(moments.variance["encoder"])
    expected = 25 * sum(float(leaf.sum()) for leaf in leaves) / sum(leaf.size for leaf in leaves)
    assert abs(found["value"] - expected) < 5 * found["error"]
    assert found["error"] < 0.1 * expected


@pytest.mark.slow
@pytest.mark.parametrize("row", ["disarm-bernoulli-iwae-2", "reinmax-categorical-elbo-2", "pathwise-gaussian-elbo-1"])
def test_certificates(experiments, monkeypatch, capsys, tmp_path, row):
    words = ["reproduce.py", "--table", "certificates", "--rows", row, "--runs-dir", str(tmp_path), "--name", "trial"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main_of("reproduce")()
    assert ended.value.code == 0
    (found,) = json.loads((tmp_path / "trial" / "results.json").read_text())["rows"]
    assert found["share"] < 0.03
    assert (found["largest_z"] < 5) != found["is_biased"]
    assert found["control_z"] > 5
    assert "1 of 1 as they must be" in capsys.readouterr().out
    assert is_picture(tmp_path / "trial" / "certificates.png")
    assert f"| {found['num_repeats']:,} |" in (tmp_path / "trial" / "table.md").read_text()


@pytest.mark.slow
def test_a_wrong_estimator_gets_no_certificate(experiments, monkeypatch):
    """DisARM whose pairs always count as different."""
    from engines.reproduce import cases, certificates

    plain = coupled.coupled_gradient
    wrong = lambda bits, excess, *rest: plain(bits, 0.5 * jnp.ones_like(excess), *rest)  # noqa: E731
    monkeypatch.setattr(coupled, "coupled_gradient", wrong)
    with jax.enable_x64(True):
        found = certificates.certified(cases.Case("disarm", "bernoulli", "elbo", 2))
    assert found["verdict"] == "BIASED"


def test_every_estimator_has_a_certificate(experiments):
    from engines.reproduce import cases, certificates

    assert len({case.row for case in cases.CASES}) == len(cases.CASES)
    assert {case.name for case in cases.CASES} == certificates.made().keys()


def table_of(monkeypatch, tmp_path, table, *rows, minutes, dataset="digits", more=()):
    """The rows of results.json, by name, of a run of the command."""
    from engines.reproduce import config

    evaluation = {"eval_samples": ["--eval-samples", "5"], "test_examples": ["--test-examples", "20"]}
    words = ["reproduce.py", "--table", table, "--rows", *rows, "--minutes", minutes, *more]
    for name in evaluation.keys() - set(config.NO_EFFECT.get(table, ())):
        words += evaluation[name]
    words += ["--runs-dir", str(tmp_path), "--name", "trial"]
    monkeypatch.setattr(sys, "argv", words + (["--dataset", dataset] if dataset else []))
    with pytest.raises(SystemExit) as ended:
        main_of("reproduce")()
    assert ended.value.code == 0
    assert is_picture(tmp_path / "trial" / "table.png")
    results = json.loads((tmp_path / "trial" / "results.json").read_text())
    return {row["row"]: row for row in results["rows"]}
