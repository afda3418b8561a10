"""Two Gaussians through one latent: the part `bottleneck` of `pca_to_vae.py`, after a blog post's experiment.

Half of the points come from N((-2, 0), 0.75^2 I), the others from N((2, 0), 0.75^2 I). Three models with the same
networks (2-10-1-10-2, relu) are trained on all 5,000 points in each of 5,000 steps:

- An autoencoder, by squared error. Whatever its latents, what it decodes lies on a curve.
- A deterministic encoder with a Gaussian decoder (mean and std from the network), by -log p(x|z). The post asks whether
  this is enough. It is not: z is computed from x, so p(x|z) is no likelihood of x, and the objective has no maximum.
  The latent copies one coordinate, whose std shrinks to the least possible, and either coordinate gives the same value.
  If the latent copies x1, which separates the two Gaussians, samples from a density fitted to the latents are right; if
  it copies x2, they are wrong.
- A VAE with that decoder, by the ELBO with N_Z samples of z for each x. The expectation over x given z is exact, so x
  is sampled only to generate, once for each z, which makes the samples independent.

The post is silent on the following, or its choice does not work. The three models share:

- Output layers start at a tenth of Flax's initial values. With these, latents far from 0 give stds from e^-8 to e^8:
  the ELBO starts as low as -10^6 nats, and Adam with 1e-3 needs the whole run to recover.
- The decoder's relus bend at draws from the prior. Without biases they all bend at z = 0, and the VAE long stays at a
  single Gaussian that ignores z.
- The learning rate falls from 1e-2 to 0. With 1e-3 the run ends too early.
- The weight of the KL is 1. If it rises from 0, the stds of q(z|x) shrink first and the latents spread far beyond the
  prior.
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
from engines.harness.rows import Result, mean_and_error, mean_row, row
from vaejax import autoencoders, data, distributions, evaluation, models, objectives, two_sample

MEAN, STD = 2.0, 0.75  # of the components, at (-MEAN, 0) and (MEAN, 0)
NUM_SEEDS = 5
NUM_POINTS = 5000  # to train on, for each seed
NUM_SAMPLES = 8000  # in each set that is compared with another; fewer with less effort
NUM_STEPS = 5000
N_Z = 3  # samples of z for each x, in the ELBO
BANDWIDTHS = 0.5 ** np.arange(1, 9, dtype=np.float32)  # of a kernel density of latents, in stds of the latents

DISTANCE = "energy distance to fresh points"
RECONSTRUCTIONS, PRIOR = "reconstructions", "latents from the prior"
GAUSSIAN, KERNELS = "latents from a fitted Gaussian", "latents from a fitted kernel density"


class Member(NamedTuple):
    """A model, trained from each seed.

    Attributes:
        name: in the table.
        model: its functions.
        params: with a first axis for the seeds.
        stochastic: whether samples are drawn from p(x|z); the plain autoencoder has only its mean.
    """

    name: str
    model: models.VAE
    params: Any
    stochastic: bool


def run(setting: Setting) -> Result:
    """Which of the three models generates: the energy distance of samples to fresh points, over five seeds."""
    keys = jax.random.split(jax.random.key(setting.seed), 6)
    num_samples = max(200, min(NUM_SAMPLES, setting.steps(NUM_SAMPLES)))
    train, test, fresh = (
        jax.vmap(lambda key, n=n: data.two_gaussians(key, n, mean=MEAN, std=STD)[0])(jax.random.split(key, NUM_SEEDS))
        for key, n in zip(keys, (NUM_POINTS, num_samples, num_samples), strict=False)
    )
    members = trained_members(setting.steps(NUM_STEPS), keys[3], keys[4], train)
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
    arrays |= {f"curve_{member.name}": curve(member, train) for member in members}
    return Result(rows, arrays | {"data": np.asarray(train[0, :2000])})


def trained_members(num_steps: int, init_key: jax.Array, fit_key: jax.Array, x: jax.Array) -> list[Member]:
    """The three models, each trained from all seeds under one `vmap`."""
    sizes = {"data_shape": (2,), "latent_dim": 1, "hidden_sizes": (10,), "activation": "relu"}
    plain = autoencoders.mlp_autoencoder(**sizes)
    deterministic = autoencoders.mlp_autoencoder(**sizes, likelihood="gaussian")
    vae = models.mlp_vae(**sizes, likelihood="gaussian")
    by_likelihood = autoencoders.make_reconstruction(deterministic, autoencoders.negative_log_likelihood)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, num_steps))
    # The three share starts, orders and noise.
    init_keys, fit_keys = (jax.random.split(key, NUM_SEEDS) for key in (init_key, fit_key))
    members = []
    for name, model, objective in (
        ("autoencoder", plain, autoencoders.make_reconstruction(plain)),
        ("deterministic encoder, Gaussian decoder", deterministic, by_likelihood),
        ("VAE", vae, objectives.make_elbo(vae, num_samples=N_Z)),
    ):
        params = jax.jit(jax.vmap(functools.partial(starting_params, model)))(jax.random.clone(init_keys))
        keys = jax.random.clone(fit_keys)
        trained = fitting.train_many(
            name, objective, optimizer, params, keys, x[:, None], num_steps=num_steps, batch_size=1
        )
        members.append(Member(name, model, trained.params, model is not plain))
    return members


def starting_params(model: models.VAE, key: jax.Array) -> Any:
    """Initial parameters, but outputs at a tenth and the decoder's relus bending at draws from the prior."""
    init_key, bend_key = jax.random.split(key)
    params = model.init(init_key)
    for part in ("encoder", "decoder"):
        params[part]["network"]["layer_1"]["kernel"] *= 0.1
    first = params["decoder"]["network"]["layer_0"]
    first["bias"] = -first["kernel"][0] * jax.random.normal(bend_key, first["bias"].shape)
    return params


def generate(member: Member, key: jax.Array, train: jax.Array, test: jax.Array) -> dict[str, jax.Array]:
    """Samples from latents of every kind, each (NUM_SEEDS, n, 2), as many as test points."""
    latent_key, noise_key = jax.random.split(key)
    latent_keys = jax.random.split(latent_key, NUM_SEEDS)
    kinds = {}
    for what, z in _latents(member.model, member.params, latent_keys, train, test).items():
        keys = jax.random.split(jax.random.fold_in(noise_key, len(kinds)), NUM_SEEDS)
        kinds[what] = _decoded(member.model, member.stochastic, member.params, keys, z)
    return kinds


@functools.partial(jax.jit, static_argnums=0)
def _latents(
    model: models.VAE, params: Any, keys: jax.Array, train: jax.Array, test: jax.Array
) -> dict[str, jax.Array]:
    """Latents of all seeds: of test points, from the prior, and for autoencoders from densities fitted to latents."""

    def one_seed(params, key, train, test):
        latent_key, prior_key, gaussian_key, row_key, kernel_key = jax.random.split(key, 5)
        q = model.encode(params, test)
        shape = (len(test), 1)
        kinds = {RECONSTRUCTIONS: distributions.sample(q, latent_key), PRIOR: jax.random.normal(prior_key, shape)}
        if isinstance(distributions.without_wrappers(q), dist.Delta):
            z = model.encode(params, train).mean
            kinds[GAUSSIAN] = z.mean() + z.std() * jax.random.normal(gaussian_key, shape)
            centres = jax.random.choice(row_key, z, shape[:1])
            kinds[KERNELS] = centres + bandwidth(z[:, 0]) * jax.random.normal(kernel_key, shape)
        return kinds

    return jax.vmap(one_seed)(params, keys, train, test)


def bandwidth(z: jax.Array) -> jax.Array:
    """The bandwidth with which a kernel density of 1,000 latents makes 1,000 others most probable."""
    kernels, others = z[:1000], z[1000:2000]
    tried = jnp.asarray(BANDWIDTHS) * z.std()

    def log_likelihood(width):
        steps = (others[:, None] - kernels[None]) / width
        return jax.nn.logsumexp(-0.5 * steps**2, axis=1).mean() - jnp.log(width)

    return tried[jax.lax.map(log_likelihood, tried).argmax()]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decoded(model: models.VAE, stochastic: bool, params: Any, keys: jax.Array, z: jax.Array) -> jax.Array:
    def one_seed(params, key, z):
        p = model.decode(params, z)
        return distributions.sample(p, key) if stochastic else jnp.asarray(p.mean)

    return jax.vmap(one_seed)(params, keys, z)


def distance(samples: jax.Array, fresh: jax.Array) -> np.ndarray:
    """The energy distance of each seed's samples to its fresh points, (NUM_SEEDS,)."""
    return np.array([float(two_sample.energy_distance(x, y).estimate) for x, y in zip(samples, fresh, strict=True)])


def seeds_row(model: str, what: str, values: np.ndarray, unit: str, note: str = "", **others: Any) -> dict[str, Any]:
    """A row of the table: the mean over seeds, with each of them in the note."""
    each = f"by seed {', '.join(f'{value:.4f}' for value in values)}"
    return mean_row(model, what, values, unit, note=f"{note}; {each}" if note else each, **others)


def times_closer(distances: dict[tuple[str, str], np.ndarray]) -> dict[str, Any]:
    """How many times closer to data the VAE's samples are than the best of the autoencoder."""
    estimates = {name: mean_and_error(values) for name, values in distances.items()}
    best = min((name for name in distances if name[0] == "autoencoder"), key=lambda name: estimates[name][0])
    (theirs, their_error), (ours, our_error) = estimates[best], estimates["VAE", PRIOR]
    return row(
        "VAE",
        "energy distance of the autoencoder's best, over that of samples from the prior",
        theirs / ours,
        "times",
        standard_error=abs(theirs / ours) * math.hypot(their_error / theirs, our_error / ours),
        note=f"the autoencoder's best are its {best[1]}; wanted: 5 or more",
    )


def stds(members: list[Member], x: jax.Array) -> list[dict[str, Any]]:
    """The learned noise of the two Gaussian decoders, at the latents of the training points."""
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
    """ELBO and log p(x) of the VAE, and its KL from the true density."""
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
    what = "mean of log p_data(x) - log p(x), which estimates their KL"
    return [
        seeds_row(vae.name, "ELBO", np.array(elbos), "nats"),
        seeds_row(vae.name, "log p(x)", np.array(likelihoods), "nats", note, known=exact),
        seeds_row(vae.name, what, np.array(divergences), "nats"),
    ]


def true_log_density(x: jax.Array) -> np.ndarray:
    """Log p_data(x) of the two Gaussians in nats, (n,)."""
    parts = [stats.norm(centre, STD).logpdf(x).sum(axis=-1) for centre in ((-MEAN, 0.0), (MEAN, 0.0))]
    return np.logaddexp(*parts) - math.log(2)


def starts(vae: Member, x: jax.Array) -> list[dict[str, Any]]:
    """The ELBO before the first step, with Flax's initial values and with those of `starting_params`."""
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


def curve(member: Member, x: jax.Array) -> np.ndarray:
    """z, mean and std of p(x|z) for the first seed, (n, 5): over its latents' range, or for the VAE the prior's."""
    params = jax.tree.map(lambda leaf: leaf[0], member.params)
    z = np.asarray(member.model.encode(params, x[0]).mean)[:, 0]
    low, high = (-3.0, 3.0) if member.name == "VAE" else (z.min(), z.max())
    z = np.linspace(low, high, 400, dtype=np.float32)[:, None]
    p = member.model.decode(params, z)
    return np.concatenate([z, np.asarray(p.mean), np.sqrt(np.asarray(p.variance))], axis=1)
