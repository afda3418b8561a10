"""Rows of models of images: VAEs by their test log p(x), linear VAEs by their ELBO, autoencoders by their error."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from engines.family import deep, linear_vae
from engines.family.run import first_images
from engines.family.setting import Setting, squared_errors
from engines.harness import fitting, loading
from engines.harness.rows import mean_and_error
from engines.reproduce import recipes
from engines.reproduce.config import Config
from engines.reproduce.jobs import Job, likelihood
from engines.reproduce.published import Row
from vaejax import autoencoders, data, models, objectives, training

NUM_PSEUDO_INPUTS = 500


def of_likelihood(config: Config, row: Row, seed: int) -> Job:
    """A VAE by the row's recipe, and its mean test log p(x)."""
    name, recipe = config.dataset or row.dataset, recipes.recipe_of(config.recipe, row)
    train, test = (loading.load(name, split, config.where).images for split in ("train", "test"))
    keys = loading.run_keys(name, seed)
    prepare = data.binarization("none" if name == "binarized_mnist" else "dynamic")
    vae = recipes.model_of(row, recipe, train.shape[1:], num_pseudo_inputs=min(NUM_PSEUDO_INPUTS, len(train)))
    params = models.with_output_bias(vae.init(keys.params), jnp.asarray(train))
    if row.prior == "vamp":
        params = loading.with_pseudo_inputs(vae, params, keys.inputs, train, NUM_PSEUDO_INPUTS, prepare)
    test = test[: config.test_examples]
    test = test if prepare is None else prepare(loading.evaluation_key("other held-out images"), test)
    models.check_data(vae, params, test)
    size = min(recipe.batch_size, len(train))

    def start(num_steps: int) -> tuple[training.TrainStep, training.TrainState]:
        optimizer = recipe.optimizer(num_steps)
        step = training.make_train_step(recipes.objective_of(row, recipe, vae, num_steps), optimizer, prepare)
        return step, training.init_state(params, optimizer)

    def evaluate(state: training.TrainState) -> dict[str, Any]:
        final = training.averages(state) if recipe.is_averaged else state.params
        return likelihood(vae, final, test, config.eval_samples)

    epochs = recipe.epochs and math.ceil(recipe.epochs * len(train) / size)
    return Job(start, jnp.asarray(train), size, keys.training, evaluate, recipe.words, epochs)


def of_linear_vae(config: Config, row: Row, seed: int) -> Job:
    """The ELBO of a linear VAE on 1,000 images, or its maximum."""
    if config.dataset:
        images = loading.load(config.dataset, "train", config.where).images[:1000]
    else:
        images = first_images(config.manual_dir, (28, 28))
    if images is None:
        raise FileNotFoundError(
            "the exact maximum is that of MNIST's first 1,000 images in the order of the original file: expected "
            "train-images-idx3-ubyte.gz in the folder that --manual-dir names"
        )
    (latent_dim,) = (min(size, math.prod(images.shape[1:]) // 2) for size in row.latent_dims)
    vae, keys = models.linear_vae(images.shape[1:], latent_dim), loading.run_keys("mnist", seed)
    params, closed_form = vae.init(keys.params), objectives.make_linear_elbo(vae)
    with jax.enable_x64(True):
        in_double = jnp.asarray(images, jnp.float64)
        exact = autoencoders.pca(images, latent_dim)
        maximum = float(exact.log_likelihood(in_double).mean())
        ridge = float(exact.explained_variance[-1])

    def number(value: float) -> dict[str, Any]:
        note = f"{maximum - value:.2g} below its maximum" if value != maximum else ""
        return {"value": value, "error": 0.0, "num_examples": len(images), "num_samples": 0, "note": note}

    def evaluate(state: training.TrainState) -> dict[str, Any]:
        with jax.enable_x64(True):
            params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), state.params)
            return number(float(closed_form(params, keys.training, in_double)[0]))

    if row.objective == "pca":
        return Job(None, images, 1, keys.training, lambda state: number(maximum), "closed form")
    is_exact = row.objective != "elbo"
    objective = closed_form if is_exact else objectives.make_elbo(vae)

    def start(num_steps: int) -> tuple[training.TrainStep, training.TrainState]:
        optimizer = linear_vae.annealed(num_steps)
        if is_exact:
            optimizer = linear_vae.whitened(optimizer, images, ridge)
        step = training.make_train_step(objective, optimizer)
        return step, training.init_state(params, optimizer)

    # The ELBO depends on the data by mean and covariance only. These few points have both.
    x = autoencoders.equivalent_examples(images)[None] if is_exact else images
    words = "the gradient in closed form, of whitened images" if is_exact else "one sample, batches of 100"
    return Job(start, jnp.asarray(x), 1 if is_exact else 100, keys.training, evaluate, words, most_steps=4000)


def of_codes(config: Config, row: Row, seed: int) -> Job:
    """The squared error of test images that are decoded from few numbers."""
    name = config.dataset or row.dataset
    train, test = (loading.load(name, split, config.where) for split in ("train+validation", "test"))
    shape, keys = train.images.shape[1:], loading.run_keys(name, seed)
    latent_dim = row.latent_dims[0] if math.prod(shape) >= 200 else 10
    images = test.images[: config.test_examples]

    def error_of(reconstructions: Any) -> dict[str, Any]:
        mean, error = mean_and_error(squared_errors(reconstructions, images))
        return {"value": float(mean), "error": float(error), "num_examples": len(images), "num_samples": 0}

    if row.objective == "pca":
        pca = autoencoders.pca(train.images, latent_dim)
        return Job(None, train.images, 1, keys.training, lambda _: error_of(pca.decode(pca.encode(images))), "exact")
    setting = Setting(train.description, shape, 1.0, train, test, latent_dim, seed)
    recipe = next(recipe for recipe in deep.recipes(setting) if recipe.name == row.objective)
    params = recipe.model.init(keys.params)

    def start(num_steps: int) -> tuple[training.TrainStep, training.TrainState]:
        optimizer = fitting.adamw(recipe.learning_rate, num_steps, recipe.weight_decay)
        step = training.make_train_step(recipe.objective, optimizer, recipe.prepare)
        return step, training.init_state(params, optimizer)

    def evaluate(state: training.TrainState) -> dict[str, Any]:
        return error_of(deep.reconstruct(recipe.model, state.params, jnp.asarray(images))[0])

    size = min(recipe.batch_size, len(train.images))
    x = jnp.asarray(train.images)
    return Job(start, x, size, keys.training, evaluate, f"{row.name}: {recipe.note}", most_steps=recipe.num_steps)
