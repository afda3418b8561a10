"""Rows of models with 200 Bernoulli latents, each trained by another estimator of the gradient."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engines.harness import loading
from engines.reproduce.config import Config
from engines.reproduce.jobs import Job, likelihood
from engines.reproduce.published import ELBO, Row
from vaejax import data, distributions, estimators, laboratory, models, objectives, training


class Bits(NamedTuple):
    """How a model of Bernoulli latents is trained."""

    hidden_sizes: tuple[int, ...]
    batch_size: int
    num_steps: int
    words: str


OF_BITS = {
    "rodeo": Bits((200, 200), 100, 1_000_000, "200-200-200, leaky ReLU 0.3, batches of 100, Adam 1e-3, prior fixed"),
    "relax": Bits(
        (), 24, 2_000_000, "linear, batches of 24, Adam 1e-3 where theirs is the best of each, prior learned"
    ),
}


def of_bits(config: Config, row: Row, seed: int) -> Job:
    """200 Bernoulli latents by a row's estimator: the variance of its gradient at the end, or the training ELBO."""
    name, own = config.dataset or row.dataset, OF_BITS[str(row.settings)]
    train, keys = loading.load(name, "train", config.where).images, loading.run_keys(name, seed)
    estimator = bits_estimator(row.objective)
    vae = models.mlp_vae(
        train.shape[1:],
        row.latent_dims[0],
        own.hidden_sizes,
        activation=lambda x: jax.nn.leaky_relu(x, 0.3),
        posterior="bernoulli",
        prior=bernoulli_prior() if row.settings == "relax" else None,
    )
    # Relaxed samples have no probability: of those estimators the KL is in closed form.
    kl = "analytic" if row.objective in ("relax", "rebar", "gumbel_softmax") else "sampled"
    elbo = objectives.make_elbo(vae, estimator, kl=kl, num_samples=row.num_samples)
    size, x = min(own.batch_size, len(train)), jnp.asarray(train)
    params = models.with_output_bias(vae.init(keys.params), x)
    params = estimators.with_baseline(params, estimator, keys.baseline, data.binarize_threshold(None, x[:1]))
    rate = 3e-4 if row.settings == "rodeo" and row.dataset == "fashion_mnist" else 1e-3

    def start(num_steps: int) -> tuple[training.TrainStep, training.TrainState]:
        optimizer = estimators.baselines.with_optimizer(optax.adam(rate))
        step = training.make_train_step(elbo, optimizer, data.binarize_dynamic)
        return step, training.init_state(params, optimizer)

    def evaluate(state: training.TrainState) -> dict[str, Any]:
        model = {part: value for part, value in state.params.items() if part != "baseline"}
        if config.of_table.quantity == ELBO:
            return of_training_images(vae, model, x[:1000], 1)
        bound = of_training_images(vae, model, x[:1000], 100)
        note = f"bound of 100 samples on training images {bound['value']:.2f} nats"
        return variance_of(elbo, state.params, x, size) | {"note": note}

    return Job(start, x, size, keys.training, evaluate, own.words, published_steps=own.num_steps)


def bits_estimator(name: str) -> estimators.Estimator:
    """The estimator of a row of Bernoulli latents."""
    if name in ("nvil", "leave_one_out"):
        return estimators.score_function(name)
    if name == "gumbel_softmax":
        return estimators.gumbel_softmax(0.5)
    return getattr(estimators, name)()


def bernoulli_prior() -> models.Prior:
    """p(z) of independent bits, whose logits are learned."""
    return models.Prior(
        lambda key, latent_dim, data_shape: {"logits": jnp.zeros(latent_dim)},
        lambda params, latent_dim, encode: distributions.BernoulliLogits(params["logits"]).to_event(1),
    )


def variance_of(elbo: objectives.Objective, params: Any, x: jax.Array, batch_size: int) -> dict[str, Any]:
    """The mean over coordinates of the variance of the encoder's gradient, over batches and samples, as theirs."""

    def of_a_batch(params: Any, key: jax.Array, x: jax.Array, *, step: Any = None) -> tuple[jax.Array, Any]:
        choice_key, prepare_key, key = jax.random.split(key, 3)
        batch = x[jax.random.randint(choice_key, (batch_size,), 0, len(x))]
        value, info = elbo(params, key, data.binarize_dynamic(prepare_key, batch), step=step)
        return batch_size * value, info

    number = 1000
    moments = laboratory.gradient_moments(of_a_batch, params, loading.evaluation_key("report"), x, number)
    leaves = jax.tree.leaves(moments.variance["encoder"])
    size = sum(leaf.size for leaf in leaves)
    error = math.sqrt(float(moments.group_spread["encoder"]) / (number - 1)) / size
    value = float(sum(np.asarray(leaf, np.float64).sum() for leaf in leaves)) / size
    return {"value": value, "error": error, "num_examples": number, "unit": "gradients", "num_samples": 0}


def of_training_images(vae: models.VAE, params: Any, x: jax.Array, num_samples: int) -> dict[str, Any]:
    """The importance-weighted bound of K samples, of one the ELBO, of training images binarized once."""
    x = data.binarize_dynamic(loading.evaluation_key("held-out images"), x)
    return likelihood(vae, params, x, num_samples)
