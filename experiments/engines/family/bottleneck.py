"""Two Gaussians through one number: `bottleneck` of `pca_to_vae.py`, after a blog post's experiment.

Points of the plane, half of them from N((-2, 0), 0.75^2 I) and half from N((2, 0), 0.75^2 I), go through a code of one
number, by three models of the same networks (2-10-1-10-2, relu), trained on all 5,000 points at each of 5,000 steps:

- an autoencoder, by squared error. What it decodes lies on a curve, whatever the codes;
- a deterministic encoder with a Gaussian decoder, mean and std from the network, by -log p(x|z): the post's open
  question, whether the encoder needs noise. That is no likelihood of x, for z was chosen with x in sight, and has no
  bound: the code copies one coordinate, whose std falls towards the least possible, and whichever it is, the value is
  the same. Where it is the one that tells the components apart, and the codes are drawn from a density fitted to them,
  the samples are right; where it is the other, the components are lost. Noise and KL are what a code costs;
- a VAE with that decoder, by the ELBO with N_Z samples of z for each x. Its expectation over x given z is exact, so
  N_X samples of x for each z are drawn only to generate: one, so that the samples are independent.

Where the post is silent or what it says does not work, the three share what follows. Its networks as Flax initializes
them give, for codes far from 0, stds of e^-8 to e^8: the ELBO starts at up to -10^6 nats, and Adam with 1e-3 spends its
5,000 steps on the way back. So output layers start at a tenth. The VAE then stays for long at the single Gaussian that
ignores the code, since all relus of a decoder without biases bend at z = 0: so they start spread over the prior. And
the learning rate falls from 1e-2 to 0, as at 1e-3 the run ends on the way. A KL weight that rises from 0 makes it
worse: without it the stds of q(z|x) fall, and codes spread far beyond the prior.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from scipy import stats

from engines.family.setting import Setting
from engines.harness import fitting
from engines.harness.rows import Result, mean_row, row
from vaejax import autoencoders, data, distributions, evaluation, models, objectives, two_sample

MEAN, STD = 2.0, 0.75  # of the components: at (-MEAN, 0) and (MEAN, 0)

NUM_SEEDS = 5

NUM_POINTS = 5000  # to train on, for each seed

NUM_SAMPLES = 8000  # in each set that is compared with another; fewer with less effort

NUM_STEPS = 5000

N_Z = 3  # samples of z for each x, in the ELBO

N_X = 1  # samples of x for each z, when generating

BANDWIDTHS = 0.5 ** np.arange(1, 9, dtype=np.float32)  # of a density of codes, in stds of the codes

DISTANCE = "energy distance to fresh points"

RECONSTRUCTIONS, PRIOR = "reconstructions", "codes from the prior"

GAUSSIAN, KERNELS = "codes from a fitted Gaussian", "codes from a fitted kernel density"


class Member(NamedTuple):
    """A model, trained from each seed.

    Attributes:
        name: in the table.
        model: its functions.
        params: with an axis for the seeds in front.
        stochastic: whether its decoder is sampled from; the mean of a plain autoencoder's is all it has.
    """

    name: str
    model: models.VAE
    params: Any
    stochastic: bool


def run(setting: Setting) -> Result:
    """Which of the three generates: energy distance of samples to fresh points, over five seeds."""
    keys = jax.random.split(jax.random.key(setting.seed), 6)
    num_samples = max(200, min(NUM_SAMPLES, setting.steps(NUM_SAMPLES)))
    train, test, fresh = (
        jax.vmap(lambda key, n=n: points(key, n))(jax.random.split(key, NUM_SEEDS))
        for key, n in zip(keys, (NUM_POINTS, num_samples, num_samples), strict=False)
    )
    members = trained_members(setting, keys[3], keys[4], train)
    generated = {("points of the same two Gaussians", "the floor"): test}
    for member, key in zip(members, jax.random.split(keys[5], len(members)), strict=True):
        for what, samples in generate(member, key, train, test).items():
            generated[member.name, what] = samples
    distances = {name: distance(samples, fresh) for name, samples in generated.items()}
    note = f"{num_samples:,} points in each set"
    rows = [
        seeds_row(name, f"{DISTANCE}, {what}", values, "length", note) for (name, what), values in distances.items()
    ]
    rows += [times_closer(distances), *stds(members, train), *densities(members[-1], test), *starts(members[-1], train)]
    arrays = {f"samples_{i}": np.asarray(samples[0, :2000]) for i, samples in enumerate(generated.values())}
    arrays |= {"names": np.array(list(generated)), "distances": np.array(list(distances.values()))}
    arrays |= {"data": np.asarray(train[0, :2000])}
    for member in members:
        codes, mean, std = curve(member, train)
        arrays |= {f"curve_{member.name}": np.concatenate([codes[:, None], mean, std], axis=1)}
    return Result(rows, arrays)


def points(key: jax.Array, num_examples: int) -> jax.Array:
    """Of the two Gaussians, (n, 2)."""
    return data.two_gaussians(key, num_examples, mean=MEAN, std=STD)[0]


def trained_members(setting: Setting, init_key: jax.Array, fit_key: jax.Array, x: jax.Array) -> list[Member]:
    """The three models, each of them from all seeds under one `vmap`."""
    sizes = {"data_shape": (2,), "latent_dim": 1, "hidden_sizes": (10,), "activation": "relu"}
    plain = autoencoders.mlp_autoencoder(**sizes)
    deterministic = autoencoders.mlp_autoencoder(**sizes, likelihood="gaussian")
    vae = models.mlp_vae(**sizes, likelihood="gaussian")
    error = autoencoders.negative_log_likelihood
    num_steps = setting.steps(NUM_STEPS)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, num_steps))
    # The same starts, orders and noise for all three.
    init_keys, fit_keys = (jax.random.split(key, NUM_SEEDS) for key in (init_key, fit_key))
    members = []
    for name, model, objective in (
        ("autoencoder", plain, autoencoders.make_reconstruction(plain)),
        (
            "deterministic encoder, Gaussian decoder",
            deterministic,
            autoencoders.make_reconstruction(deterministic, error),
        ),
        ("VAE", vae, objectives.make_elbo(vae, num_samples=N_Z)),
    ):
        params = jax.jit(jax.vmap(functools.partial(starting_params, model)))(jax.random.clone(init_keys))
        trained = fitting.train_many(
            name,
            objective,
            optimizer,
            params,
            jax.random.clone(fit_keys),
            x[:, None],
            num_steps=num_steps,
            batch_size=1,
        )
        members.append(Member(name, model, trained.params, model is not plain))
    return members


def starting_params(model: models.VAE, key: jax.Array) -> Any:
    """As the model initializes them, but outputs at a tenth, and the decoder's relus bending at draws of the prior."""
    init_key, bend_key = jax.random.split(key)
    params = model.init(init_key)
    for part in ("encoder", "decoder"):
        params[part]["network"]["layer_1"]["kernel"] *= 0.1
    first = params["decoder"]["network"]["layer_0"]
    first["bias"] = -first["kernel"][0] * jax.random.normal(bend_key, first["bias"].shape)
    return params


def generate(member: Member, key: jax.Array, train: jax.Array, test: jax.Array) -> dict[str, jax.Array]:
    """Samples of every kind, each (NUM_SEEDS, n, 2), as many as test points."""
    code_key, noise_key = jax.random.split(key)
    kinds = {}
    for what, codes in _codes(member.model, member.params, jax.random.split(code_key, NUM_SEEDS), train, test).items():
        keys = jax.random.split(jax.random.fold_in(noise_key, len(kinds)), NUM_SEEDS)
        kinds[what] = _decoded(member.model, member.stochastic, member.params, keys, codes)
    return kinds


@functools.partial(jax.jit, static_argnums=0)
def _codes(model: models.VAE, params: Any, keys: jax.Array, train: jax.Array, test: jax.Array) -> dict[str, jax.Array]:
    """Codes to decode, of all seeds: of points, from the prior, and for point codes from densities fitted to them."""

    def one_seed(params, key, train, test):
        code_key, prior_key, gaussian_key, row_key, kernel_key = jax.random.split(key, 5)
        q = model.encode(params, test)
        shape = (len(test), 1)
        kinds = {
            RECONSTRUCTIONS: distributions.sample(q, code_key),
            PRIOR: jax.random.normal(prior_key, shape),
        }
        if isinstance(distributions.without_wrappers(q), dist.Delta):
            codes = model.encode(params, train).mean
            kinds[GAUSSIAN] = codes.mean() + codes.std() * jax.random.normal(gaussian_key, shape)
            centres = jax.random.choice(row_key, codes, shape[:1])
            kinds[KERNELS] = centres + bandwidth(codes[:, 0]) * jax.random.normal(kernel_key, shape)
        return kinds

    return jax.vmap(one_seed)(params, keys, train, test)


def bandwidth(codes: jax.Array) -> jax.Array:
    """Of the kernel density on 1,000 codes that makes 1,000 others most probable."""
    kernels, others = codes[:1000], codes[1000:2000]
    tried = jnp.asarray(BANDWIDTHS) * codes.std()

    def log_likelihood(width):
        steps = (others[:, None] - kernels[None]) / width
        return jax.nn.logsumexp(-0.5 * steps**2, axis=1).mean() - jnp.log(width)

    return tried[jax.lax.map(log_likelihood, tried).argmax()]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decoded(model: models.VAE, stochastic: bool, params: Any, keys: jax.Array, codes: jax.Array) -> jax.Array:
    def one_seed(params, key, z):
        p = model.decode(params, jnp.repeat(z, N_X, axis=0))
        return distributions.sample(p, key) if stochastic else jnp.asarray(p.mean)

    return jax.vmap(one_seed)(params, keys, codes)


def distance(samples: jax.Array, fresh: jax.Array) -> np.ndarray:
    """Energy distance of the samples of each seed to its fresh points, (NUM_SEEDS,)."""
    return np.array([float(two_sample.energy_distance(x, y).estimate) for x, y in zip(samples, fresh, strict=True)])


def seeds_row(model: str, what: str, values: np.ndarray, unit: str, note: str = "", **others: Any) -> dict[str, Any]:
    """A line of the table: the mean over seeds, and each of them."""
    each = f"by seed {', '.join(f'{value:.4f}' for value in values)}"
    return mean_row(model, what, values, unit, note=f"{note}; {each}" if note else each, **others)


def times_closer(distances: dict[tuple[str, str], np.ndarray]) -> dict[str, Any]:
    """How many times the VAE's samples are closer to data than the best that the autoencoder makes."""
    means = {name: values.mean() for name, values in distances.items()}
    best = min((name for name in distances if name[0] == "autoencoder"), key=lambda name: means[name])
    ours = ("VAE", PRIOR)
    relative = [distances[name].std(ddof=1) / math.sqrt(NUM_SEEDS) / means[name] for name in (best, ours)]
    return row(
        "VAE",
        "energy distance of the autoencoder's best, over that of samples from the prior",
        means[best] / means[ours],
        "times",
        standard_error=abs(means[best] / means[ours]) * math.hypot(*relative),
        note=f"the autoencoder's best are its {best[1]}; wanted: 5 or more",
    )


def stds(members: list[Member], x: jax.Array) -> list[dict[str, Any]]:
    """What noise the two Gaussian decoders have learned, at the codes of the training points."""
    rows = []
    for member in members[1:]:
        spread = np.median(np.asarray(_learned_stds(member.model, member.params, x)), axis=1)
        for coordinate in range(2):
            what = f"std of p(x{coordinate + 1}|z), median over points"
            rows.append(seeds_row(member.name, what, spread[:, coordinate], "length"))
    return rows


@functools.partial(jax.jit, static_argnums=0)
def _learned_stds(model: models.VAE, params: Any, x: jax.Array) -> jax.Array:
    def one_seed(params, x):
        return jnp.sqrt(model.decode(params, model.encode(params, x).mean).variance)

    return jax.vmap(one_seed)(params, x)


def densities(vae: Member, test: jax.Array) -> list[dict[str, Any]]:
    """ELBO and log p(x) of the VAE's, and their distance from the true density of the points."""
    elbos, likelihoods, divergences, errors = [], [], [], []
    for seed in range(NUM_SEEDS):
        params, x = jax.tree.map(lambda leaf, seed=seed: leaf[seed], vae.params), test[seed, :1000]
        elbos.append(evaluation.elbo(vae.model, params, jax.random.key(seed), x).estimate.mean())
        result = evaluation.quadrature_log_likelihood(vae.model, params, x, num_nodes=8001, chunk_size=1000)
        likelihoods.append(result.estimate.mean())
        divergences.append((true_log_density(x) - result.estimate).mean())
        errors.append(float(result.error.max()))
    exact = float(np.mean([true_log_density(x[:1000]).mean() for x in test]))
    note = f"1,000 points for each seed, by quadrature, off by less than {max(errors):.0e}; known: of the true density"
    return [
        seeds_row(vae.name, "ELBO", np.array(elbos), "nats"),
        seeds_row(vae.name, "log p(x)", np.array(likelihoods), "nats", note, known=exact),
        seeds_row(
            vae.name, "mean of log p_data(x) - log p(x), which estimates their KL", np.array(divergences), "nats"
        ),
    ]


def true_log_density(x: jax.Array) -> np.ndarray:
    """Of the points' distribution, in nats: (n,)."""
    parts = [stats.norm(centre, STD).logpdf(x).sum(axis=-1) for centre in ((-MEAN, 0.0), (MEAN, 0.0))]
    return np.logaddexp(*parts) - math.log(2)


def starts(vae: Member, x: jax.Array) -> list[dict[str, Any]]:
    """The ELBO before the first step, with the networks as they are initialized and as they were started here."""
    elbo = jax.jit(jax.vmap(objectives.make_elbo(vae.model, num_samples=N_Z)))
    init_key, key = jax.random.split(jax.random.key(0))
    init_keys, keys = (jax.random.split(each, NUM_SEEDS) for each in (init_key, key))
    rows = []
    for how, init in (("as Flax does", vae.model.init), ("as here", functools.partial(starting_params, vae.model))):
        values = np.asarray(elbo(jax.jit(jax.vmap(init))(jax.random.clone(init_keys)), jax.random.clone(keys), x)[0])
        note = f"by seed {', '.join(f'{value:,.1f}' for value in values)}"
        what = f"least ELBO before the first step, initialized {how}"
        rows.append(row(vae.name, what, values.min(), "nats", note=note))
    return rows


def curve(member: Member, x: jax.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and std of p(x|z) along the codes, of the first seed: over those of its points, or for the VAE the prior."""
    params = jax.tree.map(lambda leaf: leaf[0], member.params)
    codes = np.asarray(member.model.encode(params, x[0]).mean)[:, 0]
    low, high = (-3.0, 3.0) if member.name == "VAE" else (codes.min(), codes.max())
    z = np.linspace(low, high, 400, dtype=np.float32)
    p = member.model.decode(params, z[:, None])
    return z, np.asarray(p.mean), np.sqrt(np.asarray(p.variance))
