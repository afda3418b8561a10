"""The command `collapse.py`: what it leaves behind, part by part, what it refuses, and what is known exactly."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import is_picture, main_of, refusal

from vaejax import data, models

PARTS = ("trap", "text", "weights", "gaps", "em")


@pytest.fixture(scope="module")
def cli(experiments):
    """The modules of experiments/ that are tested here."""
    from engines.collapse import config, run

    return config, run


def run_here(cli, *options):
    collapse, collapse_run = cli
    collapse_run.run(collapse.parse([str(option) for option in options]))


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_a_part_leaves_everything_behind(cli, tmp_path, name, monkeypatch, capsys):
    from engines.collapse import cures as collapse_cures
    from engines.collapse import gaps as collapse_gaps
    from engines.collapse import text as collapse_text
    from engines.collapse import weights as collapse_weights

    monkeypatch.setattr(collapse_text, "NUM_TRAIN", 2000)
    monkeypatch.setattr(collapse_text, "NUM_OTHERS", 30)
    monkeypatch.setattr(collapse_text, "NUM_NODES", 31)
    monkeypatch.setattr(collapse_text, "NUM_WATCHED", 2)
    monkeypatch.setattr(collapse_text, "SIZES", {"vocabulary_size": 4, "length": 3})
    monkeypatch.setattr(collapse_weights, "WEIGHTS", (0.5, 2.0))
    monkeypatch.setattr(collapse_gaps, "NUM_TEST", 4)
    monkeypatch.setattr(collapse_gaps, "NUM_CHAINS_TEST", 2)
    monkeypatch.setattr(collapse_gaps, "NUM_ANNEALED", 2)
    monkeypatch.setattr(collapse_cures, "NUM_SAMPLES", 30)
    cures = ("plain", "aggressive") if name in ("trap", "text") else ("plain",)
    options = ("--parts", name, "--cures", *cures, "--effort", 0.001, "--seeds", 2, "--runs-dir", tmp_path)
    run_here(cli, *options, "--name", "run")
    folder = tmp_path / "run"
    several = name in ("trap", "text")
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "results.json", "table.md", f"{name}.json", f"{name}.npz", f"{name}.png"),
        *(["runs"] if several else []),
    }
    if several:
        done = {f"{name}-{cure}-{seed}.npz" for cure in cures for seed in (0, 1)}
        assert {path.name for path in (folder / "runs").iterdir()} == done
    assert is_picture(folder / f"{name}.png")
    results = json.loads((folder / "results.json").read_text())
    assert results["rows"]
    assert all(row["part"] == name for row in results["rows"])
    named = {(row["model"], row["quantity"]): row["value"] for row in results["rows"]}
    printed = capsys.readouterr().out
    assert "With --effort 0.001" in printed
    if name == "trap":
        assert named["plain", "log p(x)"] is not None
        assert {model for model, _ in named} == {"independent pixels", "plain", "aggressive"}
    if name == "em":
        assert named["exact EM", "largest fall of log p(x)"] < 1e-9
        assert named["exact EM", "largest |ELBO - log p(x)| after an E-step"] < 1e-8
    if name == "gaps":
        whole = named["VAE, q Gaussian with independent units", "inference gap: log p(x) - ELBO"]
        parts = named["VAE, q Gaussian with independent units", "sum of the two parts"]
        assert whole == pytest.approx(parts, abs=1e-4)


@pytest.mark.slow
def test_cures_change_the_objective_and_nothing_else(cli):
    import optax
    from engines.collapse import cures as collapse_cures

    vae = models.mlp_vae((2, 2), 2, (3,))
    params, x = vae.init(jax.random.key(0)), jnp.ones((5, 2, 2))
    recipe = collapse_cures.Recipe(100, 5, optax.sgd(0.1), 40, 2.0, 3)

    def value(cure, step):
        value, info = collapse_cures.objective_of(cure, vae, recipe)(params, jax.random.key(1), x, step=step)
        return float(value), info

    plain, info = value("plain", 0)
    assert plain == pytest.approx(float(info.elbo))
    weight = {"lambda": 0.5, "warm-up": 0.25, "cyclical": 0.8}  # step 10 of 40; of a cycle of 25, rising for 12.5
    for cure, beta in weight.items():
        assert value(cure, 10)[0] == pytest.approx(float(info.reconstruction - beta * info.kl), rel=1e-5)
    freed, info = value("free bits", 0)
    assert freed == pytest.approx(float(info.reconstruction) - 2 * 2.0, rel=1e-5)


def test_grey_images_are_binarized_once(cli, tmp_path):
    from engines.collapse import setting as room

    options = cli[0].parse([])
    setting, again = room.setting_of(options, tmp_path), room.setting_of(options, tmp_path)
    digits = data.load("digits", split="train").images
    assert set(np.unique(setting.train)) == {0.0, 1.0}
    np.testing.assert_array_equal(setting.train, again.train)
    np.testing.assert_allclose(setting.train.mean(), digits.mean(), atol=0.01)
    binary = (digits > 0.5).astype(np.float32)
    assert room.binary(binary, 0) is binary


REFUSED = {
    "unknown part": (("--parts", "trop"), ["--parts: 'trop' is unknown", "did you mean trap?"]),
    "unknown cure": (("--cures", "anealing"), ["--cures: 'anealing' is unknown", "aggressive"]),
    "no parts": (("--parts",), ["--parts must name at least one of trap", "got none"]),
    "no effort": (("--effort", "0"), ["--effort must be a positive number; got 0"]),
    "more steps than there are numbers": (("--effort", "1e30"), ["--effort must be at most 1,000; got 1e+30"]),
    "no seeds": (("--seeds", "0"), ["--seeds must be from 1 to 1000; got 0"]),
    "points": (("--dataset", "two_gaussians"), ["expected grey images", "two_gaussians", "(2,)"]),
    "nothing to resume": (("--resume",), ["to resume; there is none"]),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_refusals(cli, tmp_path, monkeypatch, capsys, options, words):
    error = refusal(main_of("collapse"), monkeypatch, capsys, "--runs-dir", tmp_path, *options)
    assert all(word in error for word in words), error
    assert not list(tmp_path.iterdir())
