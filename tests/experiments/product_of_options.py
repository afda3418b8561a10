"""Every product of `train.py`'s estimator, objective, posterior, KL, likelihood and inference on digits, 20 steps.

Each trains to finite numbers or is refused in one line. By hand, for it takes an hour or more on two cores:

    python tests/experiments/product_of_options.py RESULTS.jsonl [FRACTION]

The results, one line for each product, are continued where they ended. FRACTION takes that part of all, at random.
"""

import collections
import contextlib
import io
import itertools
import json
import pathlib
import random
import shutil
import sys
import tempfile
import traceback
import warnings

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[2] / "experiments"

OPTIONS = {
    "estimator": (
        *("pathwise", "sticking_the_landing", "doubly_reparameterized", "score_function", "vimco", "measure_valued"),
        "enumerate_support",
    ),
    "objective": ("elbo", "iwae", "renyi", "free_bits", "info_vae", "optimal_std", "reconstruction"),
    "posterior": ("gaussian", "bernoulli", "categorical", "point"),
    "kl": ("analytic", "sampled", "entropy"),
    "likelihood": ("bernoulli", "gaussian", "gaussian_shared_std", "gaussian_fixed_std"),
    "inference": ("amortized", "aggressive", "em"),
}
SIZES = "--hidden-sizes 8 --latent-dim 2 --batch-size 32 --num-steps 20 --eval-samples 5 --num-samples 2"


def products():
    """Every product of the options, as a dict."""
    return [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]


def words_of(product):
    """The command line, without what has no effect on this product."""
    words = [word for name, value in product.items() for word in ("--" + name.replace("_", "-"), value)]
    sizes = SIZES.split()
    if product["estimator"] == "enumerate_support" or product["objective"] == "reconstruction":
        sizes[-1] = "1"
    if product["likelihood"] != "bernoulli":
        words += ["--binarization", "none"]
    if product["posterior"] == "categorical":
        words += ["--num-categories", "3"]
    if product["inference"] == "aggressive":
        words += ["--max-encoder-steps", "2"]
    return [*sizes, *words]


def outcome(product, runs_dir):
    """`("trained", log p(x))`, `("refused", the line)` or `("failed", what)` of a product."""
    from engines.train import config, run

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("error")
            run.run(config.parse([*words_of(product), "--runs-dir", str(runs_dir)]))
    except (ValueError, OSError) as error:
        line = str(error)
        return ("refused", line) if line.strip() and "\n" not in line else ("failed", f"{len(line)} letters: {line}")
    except BaseException:
        return "failed", traceback.format_exc()
    (folder,) = pathlib.Path(runs_dir).iterdir()
    result = json.loads((folder / "result.json").read_text())
    numbers = {name: value for name, value in result.items() if isinstance(value, (int, float))}
    lost = [name for name, value in numbers.items() if value != value or abs(value) == float("inf")]
    if lost:
        return "failed", f"not finite: {', '.join(lost)}"
    return "trained", result.get("test_log_likelihood", result.get("test_error"))


def refused_by_rule(product):
    """The outcome of a product that a row of `rules.py` refuses, without the time that a command line takes."""
    from engines.train import config, rules

    words, numbers = iter(words_of(product)), {"hidden_sizes": (8,)}
    for option, value in zip(words, words, strict=True):
        name = option[2:].replace("-", "_")
        numbers.setdefault(name, int(value) if value.isdigit() else value)
    if (product["objective"], product["posterior"]) == ("reconstruction", "gaussian"):
        numbers["posterior"] = "point"  # as `parse` does
    try:
        rules.check(config.Config(**numbers), config.Config())
    except ValueError as error:
        return "refused", str(error)
    return None


def main():
    """Run all that is not in the results yet, and count."""
    sys.path.insert(0, str(EXPERIMENTS))
    from engines.harness import spreading
    from engines.train import pictures, run

    spreading.keep_compiled_programs()
    run.snapshots.Viewer.snapshot = run.snapshots.Viewer.pictures = lambda *_: {}
    pictures.draw = lambda *_: []
    path = pathlib.Path(sys.argv[1])
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {json.dumps(each["product"]) for each in done}
    chosen = products()
    random.Random(0).shuffle(chosen)
    chosen = chosen[: round(float(sys.argv[2]) * len(chosen))] if len(sys.argv) > 2 else chosen
    chosen = [product for product in chosen if json.dumps(product) not in known]
    with path.open("a") as file:

        def keep(product, kind, what):
            done.append({"product": product, "outcome": kind, "what": what})
            print(json.dumps(done[-1]), file=file, flush=True)

        # Those that take no time first.
        refusals = {json.dumps(product): refused_by_rule(product) for product in chosen}
        for product in chosen:
            if refusal := refusals[json.dumps(product)]:
                keep(product, *refusal)
        for product in chosen:
            if not refusals[json.dumps(product)]:
                runs_dir = tempfile.mkdtemp()
                keep(product, *outcome(product, runs_dir))
                shutil.rmtree(runs_dir)
    print(dict(collections.Counter(each["outcome"] for each in done)))
    for each in done:
        if each["outcome"] == "failed":
            print(each["product"], str(each["what"])[-300:])


if __name__ == "__main__":
    main()
