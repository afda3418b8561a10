"""What the options of `train.py` name: model, estimator, objective, optimizer, train step, and what is reported."""

import pathlib

import jax
import jax.numpy as jnp
import optax

from engines.harness import loading
from engines.train import examples, measures, rules, session
from engines.train.config import Config
from vaejax import (
    autoencoders,
    data,
    distributions,
    estimators,
    inference,
    models,
    objectives,
    training,
)
from vaejax.data import streams
from vaejax.estimators import baselines
from vaejax.training import checkpoints


def build_plan(config: Config) -> session.Plan:
    """How long the run takes, and what is compared when it is resumed."""
    return session.Plan(
        config.num_steps,
        config.batch_size,
        config.patience,
        config.tolerance,
        config.checkpoint_seconds,
        config.compared,
    )


def build_model(config: Config, data_shape: tuple[int, ...], num_labels: int | None = None) -> models.VAE:
    """The model that the configuration names, given one of so many labels if there is a number of them."""
    fixed = config.likelihood == "gaussian_fixed_std"
    likelihood = distributions.gaussian_fixed_std(config.likelihood_std) if fixed else config.likelihood
    categorical = config.posterior == "categorical"
    posterior = distributions.categorical(config.num_categories) if categorical else config.posterior
    sizes = config.hidden_sizes
    compute_dtype = jnp.bfloat16 if config.precision == "bfloat16" else None
    given = (None if num_labels is None else (num_labels,), config.missing > 0)
    if config.model == "linear" and config.posterior == "point":
        return autoencoders.linear_autoencoder(data_shape, config.latent_dim, likelihood)
    if config.model == "linear":
        return models.linear_vae(data_shape, config.latent_dim, likelihood)
    prior, upper = build_prior(config), config.upper_latent_dims
    options = (likelihood, config.activation, posterior, compute_dtype, *given, None if upper else prior)
    if config.model == "conv":
        *channels, size = sizes
        vae = models.conv_vae(data_shape, config.latent_dim, channels, size, *options)
    else:
        vae = models.mlp_vae(data_shape, config.latent_dim, sizes, *options)
    if not upper:
        return vae
    hidden = [config.upper_hidden_sizes] * len(upper)
    layers = (config.latent_dim, *upper)
    return models.with_layers(vae, layers, hidden, config.activation, posterior, compute_dtype, prior)


def build_prior(config: Config) -> models.Prior | None:
    """The learned prior that the configuration names; None for the standard one."""
    if config.prior == "flow":
        return models.flow_prior(config.prior_layers)
    named = {"standard": lambda number: None, "mixture": models.mixture_prior, "vamp": models.vamp_prior}
    return named[config.prior](config.prior_components)


def build_held_out(
    config: Config, images: dict[str, data.Dataset], vae: models.VAE, params, num_labels: int | None = None
) -> dict[str, examples.Examples]:
    """Validation and test images, binarized once with a fixed key, so that numbers of all runs and epochs compare.

    Raises:
        ValueError: if the binarization or the likelihood cannot take them, with the options that can.
    """
    prepare = data.binarization(config.binarization)
    binarized = {}
    for split, purpose in (("validation", "held-out images"), ("test", "other held-out images")):
        key = loading.evaluation_key(purpose)
        try:
            x = images[split].images if prepare is None else prepare(key, images[split].images)
            binarized[split] = examples.of_split(images[split], split, num_labels, config.missing, x)
            if config.objective != "reconstruction":
                models.check_data(vae, params, binarized[split])
            else:  # as a likelihood would not: other errors than its own are defined for grey pixels too
                p = vae.decode(params, vae.encode(params, binarized[split][:1]).mean)
                getattr(autoencoders, config.error)(p, jnp.asarray(binarized[split]))
        except ValueError as error:
            if config.objective == "reconstruction":
                raise ValueError(
                    f"--error {config.error}, --likelihood {config.likelihood} and --binarization "
                    f"{config.binarization} do not go together on {config.dataset}: {error}"
                ) from error
            raise ValueError(
                f"--binarization {config.binarization} and --likelihood {config.likelihood} do not go with "
                f"{config.dataset}: take --binarization dynamic or threshold for grey images under a Bernoulli "
                f"likelihood, and --binarization none --likelihood gaussian for real numbers ({error})"
            ) from error
    return binarized


def build_init(config: Config, vae: models.VAE, estimator: estimators.Estimator, images):
    """`keys -> params`, of three keys: of the model, of its pseudo-inputs, and of the estimator's baseline."""
    data_shape = images.shape[1:]

    def init(keys):
        params_key, inputs_key, baseline_key = keys
        params = vae.init(params_key)
        if config.prior == "vamp":
            binarize = data.binarization(config.binarization)
            params = loading.with_pseudo_inputs(vae, params, inputs_key, images, config.prior_components, binarize)
        if estimator.baseline is None:
            return params
        return estimators.with_baseline(params, estimator, baseline_key, jnp.zeros((1, *data_shape)))

    return init


def started_from(folder: pathlib.Path, params):
    """The trained parameters of another run, of the paths and shapes of these.

    Raises:
        ValueError: if there are none, or they are another model's.
    """
    try:
        trained = checkpoints.restore_params(folder / "checkpoints")
        return training.unflatten_params(training.flatten_params(trained), params)
    except ValueError as error:
        raise ValueError(f"--start-from needs the folder of a run of the same model; got {folder}: {error}") from error


def build_estimator(config: Config) -> estimators.Estimator:
    """The gradient estimator that the configuration names."""
    if config.estimator == "score_function":
        return estimators.score_function(None if config.baseline == "none" else config.baseline)
    options = {"temperature": config.temperature} if config.estimator in rules.TEMPERED else {}
    return getattr(estimators, config.estimator)(**options)


def build_objective(config: Config, vae: models.VAE, estimator: estimators.Estimator, beta) -> objectives.Objective:
    """The objective that the configuration names; `beta` is one of its weights, a number or a traced one."""
    if config.kl_warmup_steps:
        beta = objectives.linear_warmup(config.kl_warmup_steps, end=beta)
    elif config.kl_cycle_steps:
        beta = objectives.cyclical(config.kl_cycle_steps, end=beta)
    if config.objective == "reconstruction":
        corruptions = {"none": None, "gaussian": autoencoders.gaussian_noise, "masking": autoencoders.masking_noise}
        make = corruptions[config.corruption]
        error = getattr(autoencoders, config.error)
        return autoencoders.make_reconstruction(vae, error, corrupt=make and make(config.corruption_level))
    samples = {"num_samples": config.num_samples, "chunk_size": config.chunk_size or None}
    if config.objective == "iwae":
        return objectives.make_iwae(vae, estimator, beta=beta, **samples)
    if config.objective == "renyi":
        return objectives.make_renyi(vae, config.alpha, estimator, **samples)
    if config.objective == "free_bits":
        return objectives.make_free_bits(vae, config.free_bits, estimator, beta=beta, **samples)
    if config.objective == "info_vae":
        return objectives.make_info_vae(vae, config.mmd_weight, estimator, beta=beta, **samples)
    if config.objective == "optimal_std":
        return objectives.make_optimal_std_elbo(vae, beta=beta, **samples)
    return objectives.make_elbo(vae, estimator, kl=config.kl, beta=beta, **samples)


def build_step(
    config: Config, vae: models.VAE, objective, optimizer, params, num_images: int, held_out
) -> tuple[training.TrainStep, training.TrainState, int]:
    """The step of the inference that the configuration names, its first state, and how many examples it is handed.

    Raises:
        ValueError: if there are fewer examples than it needs.
    """
    prepare = build_prepare(config)
    size = config.batch_size
    if config.inference == "amortized":
        step = training.make_train_step(objective, optimizer, prepare)
        # One program instead of one for each of the optimizer's arrays: a third of a second.
        return step, jax.jit(training.init_state, static_argnums=1)(params, optimizer), size
    if config.inference == "aggressive":
        size *= 1 + config.max_encoder_steps
        if size > num_images:
            raise ValueError(
                f"--inference aggressive hands each step (1 + --max-encoder-steps) batches, {size:,} examples here; "
                f"{config.dataset} has {num_images:,}: take fewer --max-encoder-steps or a smaller --batch-size"
            )
        step = inference.make_aggressive_train_step(
            vae,
            objective,
            optimizer,
            optimizer,
            held_out["validation"][:500],
            batch_size=config.batch_size,
            max_encoder_steps=config.max_encoder_steps,
            window=max(1, config.max_encoder_steps // 4),
            check_every=max(1, config.num_steps // 20),
            patience=5,
            prepare=prepare,
        )
        return step, inference.init_lagging(params, optimizer, optimizer), size
    if config.is_exact_em:
        # Exact: the whole set at each step, and nothing of the objective's options.
        return inference.make_em_step(vae), training.init_state(params, optax.identity()), num_images
    step = inference.make_variational_em_step(objective, optimizer, optimizer)
    if prepare is not None:
        step = prepared(step, prepare)
    return step, inference.init_groups(params, optimizer, optimizer), size


def build_prepare(config: Config):
    """What is done to each batch first, `(key, images) -> images`, or None."""
    binarize = data.binarization(config.binarization)
    if not config.stream:
        return binarize

    def from_bytes(key, images):
        images = streams.as_numbers(images)
        return images if binarize is None else binarize(key, images)

    return from_bytes


def white(config: Config) -> float:
    """The number that stands for a white pixel in what the model sees."""
    return 255.0 if config.binarization == "levels" else 1.0


def prepared(step: training.TrainStep, prepare) -> training.TrainStep:
    """A step whose batches are prepared first, as `training.make_train_step` does it."""

    def prepared_step(state, key, batch):
        prepare_key, key = jax.random.split(key)
        return step(state, key, prepare(prepare_key, batch))

    return prepared_step


def build_measure(config: Config, vae: models.VAE) -> measures.Measure:
    """What is reported of the model."""
    if config.objective == "reconstruction":
        described = "in squared units of the data" if config.binarization == "none" else "of binarized images"
        described += "" if config.corruption == "none" else ", inputs without noise"
        return measures.of_reconstructions(vae, config.error, described)
    measure = measures.of_bounds(vae, config.eval_samples, config.validation_samples)
    if config.averages:
        measure = measure._replace(params_of=training.averages)
    if config.objective != "optimal_std":
        return measure

    def finished(params, images, purpose):  # the std that the objective had in mind, which no gradient has moved
        return objectives.with_optimal_std(vae, params, loading.evaluation_key(purpose), images[:1000])

    return measure._replace(
        validate=lambda params, images: measure.validate(finished(params, images, "best std"), images),
        evaluate=lambda params, images: measure.evaluate(finished(params, images, "best std of test"), images),
    )


def build_schedule(config: Config, learning_rate) -> optax.Schedule:
    """The learning rate against updates: its rise to `learning_rate`, a number or a traced one, and its fall."""
    rising = config.learning_rate_warmup_steps // config.accumulate_steps
    steps = max(1, config.num_steps // config.accumulate_steps - rising)
    rate = {
        "constant": optax.constant_schedule(learning_rate),
        "linear": optax.linear_schedule(learning_rate, 0.0, steps),
        "cosine": optax.cosine_decay_schedule(learning_rate, steps),
    }[config.learning_rate_schedule]
    if not rising:
        return rate
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, rising), rate], [rising])


def build_optimizer(config: Config, learning_rate, estimator: estimators.Estimator):
    """The optimizer that the configuration names, with its schedule from `learning_rate`, a number or a traced one."""
    rate = build_schedule(config, learning_rate)
    named = {"adam": optax.adam, "adagrad": optax.adagrad, "rmsprop": optax.rmsprop, "sgd": optax.sgd}
    optimizer = named[config.optimizer](rate)
    if config.weight_decay:
        optimizer = optax.adamw(rate, weight_decay=config.weight_decay, mask=is_kernel)
    if config.max_gradient_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optimizer)
    if config.accumulate_steps > 1:
        optimizer = optax.MultiSteps(optimizer, config.accumulate_steps).gradient_transformation()
    optimizer = optimizer if estimator.baseline is None else baselines.with_optimizer(optimizer)
    return training.with_averages(optimizer, config.averages) if config.averages else optimizer


def is_kernel(params):
    """Which parameters are matrices or filters of a layer."""
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", None) == "kernel", params)
