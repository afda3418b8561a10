"""A good call of every public function; `test_fuzz.py` replaces one argument after the other by what is wrong."""

import functools
import inspect
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from flax import linen, nnx

import vaejax
from vaejax import (
    adversarial,
    augmentation,
    autoencoders,
    checkpoints,
    devices,
    distributions,
    estimators,
    evaluation,
    inference,
    laboratory,
    models,
    networks,
    objectives,
    sequences,
    streams,
    training,
)

VAE = models.mlp_vae((3,), 2, (4,))
VAMP = models.mlp_vae((3,), 2, (4,), prior=models.vamp_prior(2))
LINEAR = models.linear_vae(3, 2)
POINT = autoencoders.linear_autoencoder((3,), 2)
GAN = adversarial.mlp_gan((3,), 2, (4,))
VQ = models.vq_vae((3,), 4, 2, 2, (4,))
WRITER = sequences.lstm_vae(5, 4, 2, embedding_size=3, hidden_size=3)
X = jnp.asarray(np.arange(12).reshape(4, 3) % 2, jnp.float32)
Z = jnp.asarray(np.linspace(-1, 1, 8).reshape(4, 2), jnp.float32)
IMAGES = jnp.full((4, 6, 6), 0.5)
NORMAL = dist.Normal(jnp.zeros((4, 2)), jnp.ones((4, 2))).to_event(1)
PIXELS = distributions.BernoulliLogits(jnp.zeros((4, 3))).to_event(1)
ELBO = objectives.make_elbo(VAE)
SGD = optax.sgd(0.1)
SUMMARY = laboratory.Summary(*(1, 3.0, 4.0, 3.0, 5.0), *[None] * 7)
COST = laboratory.Cost(4.0, None, 3.0, 3.0, 3.0, 20)
SETTING = ("pathwise", 1)
PAIR = networks.mlp(3, (4,), 2)


class Argument(NamedTuple):
    """What one argument is: its kind, a key of `wrong.WRONG` or None where nothing is said of it; and a good value."""

    kind: str | None
    make: Callable[[], Any]


def of(kind: str | None, make: Any) -> Argument:
    """An argument of a kind; a function without arguments, a lambda, makes its value."""
    lazy = inspect.isfunction(make) and make.__name__ == "<lambda>" and not inspect.signature(make).parameters
    return Argument(kind, make if lazy else lambda: make)


@functools.cache
def params_of(model: Any) -> Any:
    """Parameters of a model, made once."""
    return model.init(jax.random.key(1))


def state_of(model: Any = VAE) -> training.TrainState:
    """The first state of a training."""
    return training.init_state(params_of(model), SGD)


def two_states() -> training.TrainState:
    """Those of two runs."""
    return training.init_population(VAE.init, SGD, jax.random.split(jax.random.key(0), 2))


@functools.cache
def moments() -> Any:
    """Of two gradients."""
    return laboratory.gradient_moments(ELBO, params_of(VAE), jax.random.key(0), X, 2)


@functools.cache
def report() -> Any:
    """Of the linear model."""
    return evaluation.report(LINEAR, params_of(LINEAR), jax.random.key(0), jnp.eye(3), 2)


@functools.cache
def likelihoods() -> Any:
    """Of the linear model's examples."""
    return evaluation.log_likelihood(LINEAR, params_of(LINEAR), jax.random.key(0), jnp.eye(3), 2)


@functools.cache
def saved() -> str:
    """A folder with a checkpoint."""
    directory = tempfile.mkdtemp()
    checkpoints.save(directory, state_of(), config={})
    return directory


# What an argument of this name is, wherever a call does not say otherwise.
NAMED = {
    "vae": of("model", VAE),
    "params": of("params", lambda: params_of(VAE)),
    "key": of("key", lambda: jax.random.key(0)),
    "keys": of("keys", lambda: jax.random.split(jax.random.key(0), 2)),
    "x": of("data", X),
    "objective": of("objective", ELBO),
    "estimator": of("estimator", estimators.pathwise()),
    **dict.fromkeys(("q", "distribution"), of("distribution", NORMAL)),
    "p": of("distribution", PIXELS),
    "prior": of("distribution", dist.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1)),
    "state": of("state", lambda: state_of()),
    "step": of("function", lambda: training.make_train_step(ELBO, SGD)),
    "z": of("numbers", Z),
    "log_w": of(None, Z),
    "images": of("numbers", IMAGES),
    "data_shape": of("sizes", (3,)),
    "hidden_sizes": of("sizes", (4,)),
    "gan": of("gan", GAN),
    "make_distribution": of("function", lambda: lambda mean: dist.Normal(mean, 1.0)),
    "f": of("function", lambda: lambda mean, z: mean * z),
    "likelihood": of(None, "bernoulli"),
    **dict.fromkeys(("optimizer", "encoder_optimizer", "decoder_optimizer"), of("optimizer", SGD)),
}
COUNTS = {  # arguments that count something, of each function where they stand, and a small good value
    **dict.fromkeys(("num_samples", "batch_size", "chunk_size", "num_repeats", "num_chains", "num_leapfrog"), 2),
    **dict.fromkeys(("num_warmup", "eval_samples", "num_rings", "num_modes", "latent_dim", "num_steps", "keep"), 2),
    **dict.fromkeys(("num_rounds", "num_e_steps", "num_m_steps", "max_encoder_steps", "window", "check_every"), 1),
    **dict.fromkeys(("patience", "group_size", "chunk_steps", "num_outputs", "ahead", "num_blocks", "num_groups"), 1),
    **dict.fromkeys(("num_temperatures", "num_permutations", "num_nodes", "num_categories", "data_dim"), 3),
    **dict.fromkeys(("embedding_size", "input_size"), 3),
    **dict.fromkeys(("num_examples", "max_examples", "hidden_size", "length", "period", "num", "output_size"), 4),
    **dict.fromkeys(("vocabulary_size", "num_components", "num_inputs"), 5),
    **dict.fromkeys(("num_codes", "num_positions", "code_dim"), 2),
    "num_layers": 2,
}
NAMED |= {name: of("count", number) for name, number in COUNTS.items()}


class Call(NamedTuple):
    """A function and what is not as `NAMED` says. Of a factory, `make` makes the function."""

    make: Callable[[], Callable]
    arguments: dict[str, Argument]

    def good(self) -> dict[str, Argument]:
        """The arguments of a good call, by name: those without a default, and all that have a kind."""
        known = {}
        for name, parameter in inspect.signature(self.make()).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if name in self.arguments:
                known[name] = self.arguments[name]
            elif name in NAMED:
                known[name] = NAMED[name]
            elif parameter.default is parameter.empty:
                raise KeyError(f"no good value of {name}")
        return known

    def is_known(self) -> bool:
        """Whether every argument has a good value."""
        try:
            return bool(self.good()) or True
        except KeyError:
            return False

    def allows(self, name: str, value: Any) -> bool:
        """Whether a value is the argument's default, as None often is."""
        return inspect.signature(self.make()).parameters[name].default is value


def call(function: Callable, /, **arguments: Argument) -> Call:
    """A call of a function itself."""
    return Call(lambda: function, arguments)


def closure(make: Callable[[], Callable], /, **arguments: Argument) -> Call:
    """A call of what a function returns."""
    return Call(functools.cache(make), arguments)


LEARNED = of("prior", lambda: models.mixture_prior(2))
of_linear = {"vae": of("model", LINEAR), "params": of("linear params", lambda: params_of(LINEAR))}
of_linear_data = {**of_linear, "x": of("real data", X)}
of_state = {"state": of("state", lambda: state_of()), "batch": of("data", X)}
of_density = {"x": of("numbers", X)}
of_points = {"x": of("numbers", Z), "y": of("numbers", Z + 1)}
of_run = {"data": of("tree", X), "num_steps": of("count from 0", 1)}
of_moments = {"objective": of("objective", ELBO), "step": of(None, None)}
two_groups = lambda: inference.init_groups(params_of(VAE), SGD, SGD)  # noqa: E731
of_samples = {"sample_term": of("function", lambda: jax.random.normal)}
of_axes = {name: of("numbers", jnp.eye(3)[:2]) for name in ("axes", "components")}

CALLS = {
    # adversarial
    "adversarial.gan_from_vae": call(adversarial.gan_from_vae, discriminator=of("network", networks.mlp(3, (4,), 1))),
    "adversarial.sample": call(adversarial.sample, params=of("gan params", lambda: params_of(GAN))),
    "adversarial.two_optimizers": call(
        adversarial.two_optimizers, generator=of("optimizer", SGD), discriminator=of("optimizer", SGD)
    ),
    # augmentation
    "augmentation.affine": call(
        augmentation.affine,
        matrices=of("numbers", jnp.broadcast_to(jnp.eye(2), (4, 2, 2))),
        shifts=of("numbers", jnp.zeros((4, 2))),
    ),
    "augmentation.partly": call(augmentation.partly, transform=of("function", lambda: lambda key, images: images)),
    # autoencoders
    "autoencoders.axis_alignment": call(autoencoders.axis_alignment, **of_axes),
    "autoencoders.subspace_distance": call(autoencoders.subspace_distance, **of_axes),
    **{
        f"autoencoders.{name}": call(getattr(autoencoders, name), **of_density)
        for name in ("cross_entropy", "negative_log_likelihood", "squared_error")
    },
    "autoencoders.conv_autoencoder": call(
        autoencoders.conv_autoencoder, data_shape=of("sizes", (4, 4)), channels=of("sizes", (2,))
    ),
    "autoencoders.denoising_score": call(
        autoencoders.denoising_score,
        vae=of("model", POINT),
        params=of("linear params", lambda: params_of(POINT)),
        x=of("real data", X),
        std=of("number", 0.1),
    ),
    "autoencoders.equivalent_examples": call(autoencoders.equivalent_examples, x=of("examples", jnp.eye(4))),
    "autoencoders.gaussian_noise": call(autoencoders.gaussian_noise, std=of("number", 0.1)),
    "autoencoders.make_reconstruction": call(
        autoencoders.make_reconstruction, vae=of("model", POINT), error=of("function", autoencoders.squared_error)
    ),
    "autoencoders.make_vector_quantization": call(
        autoencoders.make_vector_quantization,
        vae=of("model", VQ),
        error=of("function", autoencoders.squared_error),
        **{name: of("number", 0.5) for name in ("commitment", "decay", "revive_below")},
    ),
    "autoencoders.masking_noise": call(autoencoders.masking_noise, probability=of("number", 0.1)),
    "autoencoders.nested_dropout": call(autoencoders.nested_dropout, probabilities=of("weights", [0.5, 0.5])),
    "autoencoders.nonuniform_l2": call(autoencoders.nonuniform_l2, weights=of("weights", [0.5, 0.5])),
    "autoencoders.pca": call(autoencoders.pca, x=of("examples", jnp.eye(4))),
    "autoencoders.uniform_l2": call(autoencoders.uniform_l2, weight=of("number", 0.1)),
    # checkpoints
    "checkpoints.save": call(checkpoints.save, directory=of(None, lambda: tempfile.mkdtemp()), config=of(None, {})),
    "checkpoints.restore": call(
        checkpoints.restore,
        directory=of(None, lambda: saved()),
        step=of(None, None),
        like=of("state", lambda: state_of()),
        config=of(None, {}),
    ),
    "checkpoints.restore_params": call(
        checkpoints.restore_params, directory=of(None, lambda: saved()), step=of(None, None)
    ),
    # data
    "data.check_finite": call(vaejax.data.check_finite),
    "data.binarize_dynamic": call(vaejax.data.binarize_dynamic),
    "data.binarize_threshold": call(vaejax.data.binarize_threshold),
    "data.binarization": call(vaejax.data.binarization, name=of("choice", "threshold")),
    "data.load": call(vaejax.data.load, name=of("choice", "digits"), split=of("choice", "test")),
    "data.linear_gaussian_parameters": call(
        vaejax.data.linear_gaussian_parameters, key=of("key", lambda: jax.random.key(0)), std=of("number", 0.5)
    ),
    # devices
    "devices.make_mesh": call(devices.make_mesh, axis=of("choice", "batch")),
    "devices.size": call(devices.size, axis=of(None, "batch")),
    "devices.spread": call(devices.spread, axis=of(None, "batch"), tree=of(None, X)),
    "devices.replicate": call(devices.replicate, mesh=of(None, lambda: devices.make_mesh()), tree=of(None, X)),
    "devices.meet": call(devices.meet, where=of(None, "here")),
    # distributions
    "distributions.check_support": call(distributions.check_support, **of_density),
    "distributions.data_log_prob": call(distributions.data_log_prob, **of_density),
    "distributions.in_support": call(distributions.in_support, **of_density),
    "distributions.gaussian_fixed_std": call(distributions.gaussian_fixed_std, std=of("number", 1.0)),
    "distributions.kl_divergence": call(distributions.kl_divergence, p=of("distribution", NORMAL)),
    "distributions.kl_per_unit": call(distributions.kl_per_unit, p=NAMED["prior"]),
    "distributions.as_quantized": call(
        distributions.as_quantized, q=of("distribution", lambda: VQ.encode(params_of(VQ), X))
    ),
    "distributions.perplexity": call(distributions.perplexity, counts=of("weights", [0.5, 0.5])),
    **{
        f"distributions.{name}": call(getattr(distributions, name), levels=of("sizes", (3, 2)))
        for name in ("scalar_codes", "scalar_quantized")
    },
    "distributions.likelihood_head": call(distributions.likelihood_head, likelihood=of("choice", "bernoulli")),
    "distributions.posterior_head": call(distributions.posterior_head, posterior=of("choice", "gaussian")),
    "distributions.log_prob": call(distributions.log_prob, value=of(None, Z)),
    "distributions.relaxed": call(distributions.relaxed, q=of("distribution", PIXELS)),
    # estimators
    "estimators.arms": call(estimators.arms, copula=of("choice", "gaussian")),
    "estimators.as_estimator": call(estimators.as_estimator, estimate=of("estimator", estimators.pathwise())),
    "estimators.by_part": call(estimators.by_part, parts=of(None, lambda: {"z": estimators.pathwise()})),
    **{
        f"estimators.{name}": call(getattr(estimators, name), temperature=of("number", 0.5))
        for name in ("gumbel_softmax", "rebar")
    },
    "estimators.relax": call(estimators.relax, temperature=of("number", 0.5), through_model=of(None, True)),
    "estimators.ovis": call(estimators.ovis, num_auxiliary=of("count", 2)),
    "estimators.effective_sample_size": call(estimators.effective_sample_size, log_w=of(None, Z)),
    "estimators.over_samples": call(estimators.over_samples, **of_samples),
    "estimators.over_samples_with_noise": call(
        estimators.over_samples_with_noise,
        sample_term=of("function", lambda: lambda key, noise: jax.random.normal(key)),
    ),
    "estimators.combined_reduction": call(
        estimators.combined_reduction,
        first=of("record", estimators.mean_reduction()),
        second=of("record", estimators.log_mean_exp_reduction()),
        weight=of("number", 0.5),
    ),
    "estimators.thermodynamic_reduction": call(
        estimators.thermodynamic_reduction, temperatures=of("temperatures", (0.0, 0.5))
    ),
    "estimators.renyi_reduction": call(estimators.renyi_reduction, alpha=of("order", 0.5)),
    "estimators.score_function": call(estimators.score_function, baseline=of("choice", "leave_one_out")),
    "estimators.with_baseline": call(
        estimators.with_baseline,
        estimator=of("estimator", estimators.score_function("moving_average")),
        x=of("numbers", X),
    ),
    # evaluation
    "evaluation.average": call(evaluation.average, result=of(None, lambda: likelihoods())),
    "evaluation.is_trustworthy": call(evaluation.is_trustworthy, result=of(None, lambda: likelihoods())),
    "evaluation.in_words": call(evaluation.in_words, result=of(None, lambda: report())),
    "evaluation.numbers": call(evaluation.numbers, result=of(None, lambda: report())),
    "evaluation.check_continuous": call(evaluation.check_continuous, advice=of(None, "do not")),
    "evaluation.codebook_usage": call(
        evaluation.codebook_usage,
        vae=of("model", VQ),
        params=of("linear params", lambda: params_of(VQ)),
        x=of("real data", X),
    ),
    "evaluation.independent_log_likelihood": call(
        evaluation.independent_log_likelihood, train=of("numbers", X), x=of("numbers", X)
    ),
    "evaluation.linear_log_likelihood": call(evaluation.linear_log_likelihood, **of_linear_data),
    "evaluation.log_likelihood_from": call(evaluation.log_likelihood_from),
    "evaluation.log_likelihood_sweep": call(evaluation.log_likelihood_sweep, num_samples=of("counts", (1, 2))),
    "evaluation.pareto_index": call(evaluation.pareto_index, log_w=of(None, jnp.linspace(-3, -1, 50))),
    "evaluation.report": call(evaluation.report, **of_linear_data, progress=of("function", lambda: lambda words: None)),
    **{
        f"evaluation.{name}": call(getattr(evaluation, name), num_nodes=of("count", 41))
        for name in ("quadrature_log_likelihood", "quadrature_posterior")
    },
    # inference
    "inference.sample_posterior": call(inference.sample_posterior, **of_linear_data, num_samples=of("count", 4)),
    "inference.em": call(inference.em, **of_linear_data),
    "inference.fit_gaussian_on_grid": call(
        inference.fit_gaussian_on_grid,
        log_density=of("numbers", -0.5 * jnp.linspace(-3, 3, 21) ** 2),
        points=of("numbers", jnp.linspace(-3, 3, 21)[:, None]),
        direction=of("choice", "reverse"),
    ),
    "inference.make_aggressive_train_step": call(inference.make_aggressive_train_step, validation=of("data", X)),
    "inference.make_em_step": call(inference.make_em_step, **of_linear),
    "inference.with_best_decoder": call(inference.with_best_decoder, **of_linear_data),
    "inference.with_exact_posterior": call(inference.with_exact_posterior, **of_linear),
    # laboratory
    "laboratory.compare": call(
        laboratory.compare,
        estimators=of("estimators", {"pathwise": estimators.pathwise()}),
        num_samples=of("counts", (1,)),
        num_repeats=of("count from 2", 3),
        step=of(None, None),
    ),
    "laboratory.cost": call(laboratory.cost, objectives=of("objectives", {"elbo": ELBO}), step=of(None, None)),
    "laboratory.gradient_moments": call(
        laboratory.gradient_moments, num_repeats=of("count from 2", 3), step=of(None, None)
    ),
    "laboratory.measure_noise": call(
        laboratory.measure_noise,
        served=of("objectives", {SETTING: ELBO}),
        keys=of(None, lambda: {SETTING: jax.random.key(0)}),
        num_repeats=of("count from 2", 3),
        reference_of=of("function", lambda: lambda setting: setting),
        step=of(None, None),
    ),
    "laboratory.noise_ratio": call(laboratory.noise_ratio, part=of(None, SUMMARY), unit=of(None, SUMMARY)),
    "laboratory.noise_ratios": call(
        laboratory.noise_ratios,
        summaries=of(None, {SETTING: SUMMARY}),
        costs=of(None, {SETTING: COST}),
        setting=of(None, SETTING),
        relative_to=of(None, SETTING),
    ),
    "laboratory.seconds_ratio": call(laboratory.seconds_ratio, cost=of(None, COST), unit=of(None, COST)),
    "laboratory.serving": call(
        laboratory.serving,
        objective_of=of("function", lambda: lambda setting: ELBO),
        settings=of(None, [SETTING]),
        step=of(None, None),
    ),
    "laboratory.shared_signal_to_noise": call(
        laboratory.shared_signal_to_noise, part=of(None, SUMMARY), same_mean=of(None, [SUMMARY])
    ),
    "laboratory.summarize": call(laboratory.summarize, moments=of(None, lambda: moments())),
    # models
    "models.check_alone": call(models.check_alone, name=of(None, "encode"), alone=of(None, X[:1]), among=of(None, X)),
    "models.check_distributions": call(models.check_distributions, **of_density),
    "models.check_floating": call(models.check_floating, x=of("numbers", X)),
    "models.check_likelihood": call(models.check_likelihood, batch_shape=of(None, (4,)), data_shape=of(None, (3,))),
    "models.checked_data": call(models.checked_data, data_shape=of(None, (3,))),
    "models.conv_vae": call(models.conv_vae, data_shape=of("sizes", (4, 4)), channels=of("sizes", (2,)), prior=LEARNED),
    "models.mlp_vae": call(models.mlp_vae, prior=LEARNED),
    "models.from_functions": call(
        models.from_functions,
        **{name: of("function", lambda: lambda x, z: x) for name in ("log_joint", "sample", "log_prob")},
    ),
    "models.given": call(models.given, batch=of("data", X)),
    "models.linear_decoder": call(models.linear_decoder, **of_linear),
    "models.fsq_vae": call(
        models.fsq_vae, data_shape=of("sizes", (4, 4)), levels=of("sizes", (3, 2)), channels=of("sizes", (2,))
    ),
    "models.hierarchical_vae": call(
        models.hierarchical_vae, latent_dims=of("sizes", (2, 1)), hidden_sizes=of(None, ((4,), (4,))), prior=LEARNED
    ),
    "models.with_layers": call(
        models.with_layers, latent_dims=of("sizes", (2, 1)), hidden_sizes=of(None, ((4,),)), prior=LEARNED
    ),
    "models.with_pseudo_inputs": call(
        models.with_pseudo_inputs, vae=of("model", VAMP), params=of("params", lambda: params_of(VAMP)), x=of("data", X)
    ),
    "models.make_vae": call(
        models.make_vae,
        encoder=of("network", networks.mlp(3, (), 4)),
        decoder=of("network", networks.mlp(2, (), 3)),
        prior=LEARNED,
    ),
    "models.numbers_of": call(models.numbers_of, batch=of(None, X)),
    # monte_carlo
    # networks
    "networks.activation_function": call(networks.activation_function, activation=of("choice", "tanh")),
    "networks.as_network": call(networks.as_network, network=of("network", PAIR)),
    "networks.conv_decoder": call(
        networks.conv_decoder, image_shape=of("sizes", (4, 4, 1)), channels=of("sizes", (2,))
    ),
    "networks.conv_encoder": call(
        networks.conv_encoder, image_shape=of("sizes", (4, 4, 1)), channels=of("sizes", (2,))
    ),
    "networks.from_linen": closure(
        lambda: lambda module: networks.from_linen(module, (3,)), module=of("network", lambda: linen.Dense(2))
    ),
    "networks.from_nnx": call(networks.from_nnx, build=of("network", lambda: lambda rngs: nnx.Linear(3, 2, rngs=rngs))),
    "networks.in_dtype": call(networks.in_dtype, network=of("network", PAIR), dtype=of(None, jnp.float32)),
    "networks.linear_kernel": call(
        networks.linear_kernel, params=of(None, lambda: params_of(LINEAR)["decoder"]["network"])
    ),
    # objectives
    "objectives.cyclical": call(objectives.cyclical),
    "objectives.effective_sample_size": call(objectives.effective_sample_size, log_w=of(None, Z)),
    "objectives.make_bound": call(objectives.make_bound, reduction=of("record", estimators.mean_reduction())),
    "objectives.make_free_bits": call(objectives.make_free_bits, free_bits=of("number", 0.1)),
    "objectives.make_info_vae": call(objectives.make_info_vae, mmd_weight=of("number", 0.1)),
    "objectives.make_linear_elbo": call(objectives.make_linear_elbo, vae=of("model", LINEAR)),
    "objectives.make_optimal_std_elbo": call(objectives.make_optimal_std_elbo, vae=of("model", LINEAR)),
    "objectives.make_ciwae": call(objectives.make_ciwae, elbo_weight=of("number", 0.5)),
    "objectives.make_thermodynamic": call(objectives.make_thermodynamic, temperatures=of("temperatures", (0.0, 0.5))),
    "objectives.make_renyi": call(objectives.make_renyi, alpha=of("order", 0.5)),
    "objectives.with_optimal_std": call(objectives.with_optimal_std, **of_linear_data),
    # reparameterization, sequences, streams
    "sequences.draw": call(
        sequences.draw,
        vae=of("model", WRITER),
        params=of("linear params", lambda: params_of(WRITER)),
        num_sequences=of("count", 2),
    ),
    "streams.as_numbers": call(streams.as_numbers, images=of("bytes", np.zeros((2, 3), np.uint8))),
    "streams.make_stream": call(
        streams.make_stream, source=of("tree", np.zeros((4, 3), np.float32)), seed=of("count from 0", 0)
    ),
    "streams.read": call(
        streams.read,
        stream=of(None, lambda: streams.make_stream(np.zeros((4, 3), np.float32), 2, 0)),
        start=of("count from 0", 0),
    ),
    # training
    "training.ascend": call(
        training.ascend,
        value=of("function", lambda: lambda w: (-(w**2), w)),
        params=of(None, jnp.ones(())),
        opt_state=of(None, lambda: SGD.init(jnp.ones(()))),
    ),
    "training.averages": call(
        training.averages, state=of("state", lambda: training.init_state(params_of(VAE), training.with_averages(SGD)))
    ),
    "training.check_chunk": call(
        training.check_chunk, chunk=of(None, lambda: training.Chunk(state_of(), {"elbo": np.zeros(3)}, 0, 3, 0.1))
    ),
    "training.fit": call(training.fit, **of_run),
    "training.fit_batches": call(training.fit_batches, batches=of("tree", X[None])),
    "training.fit_population": call(
        training.fit_population,
        **of_run,
        make_step=of("function", lambda: lambda rate: training.make_train_step(ELBO, SGD)),
        states=of("state", lambda: two_states()),
    ),
    "training.flatten_params": call(training.flatten_params, params=of("tree of params", lambda: params_of(VAE))),
    "training.init_population": call(training.init_population, init=of("function", lambda: VAE.init)),
    "training.init_state": call(training.init_state, params=of("tree of params", lambda: params_of(VAE))),
    "training.run_chunks": call(
        training.run_chunks,
        fit=of("function", lambda: lambda state, stop: (state._replace(step=state.step + 1), {"elbo": np.zeros(1)})),
        num_steps=of("count from 0", 2),
    ),
    "training.unflatten_params": call(
        training.unflatten_params, flat=of(None, lambda: training.flatten_params(params_of(VAE)))
    ),
    # two_sample
    "two_sample.energy_distance": call(distributions.two_sample.energy_distance, **of_points),
    "two_sample.maximum_mean_discrepancy": call(
        distributions.two_sample.maximum_mean_discrepancy, **of_points, bandwidth=of("number", 1.0)
    ),
    "two_sample.median_bandwidth": call(distributions.two_sample.median_bandwidth, **of_points),
    "two_sample.p_value": call(distributions.two_sample.p_value, **of_points),
    # What the factories return.
    "VAE.init": closure(lambda: lambda key: VAE.init(key)),
    "VAE.encode": closure(lambda: VAE.encode, context=of(None, None), mask=of(None, None)),
    "VAE.decode": closure(lambda: VAE.decode, context=of(None, None)),
    "VAE.prior": closure(lambda: VAE.prior),
    "WRITER.encode": closure(
        lambda: WRITER.encode,
        params=of("linear params", lambda: params_of(WRITER)),
        x=of("tokens", jnp.zeros((2, 4), jnp.int32)),
    ),
    "WRITER.decode": closure(lambda: WRITER.decode, params=of("linear params", lambda: params_of(WRITER))),
    "elbo": closure(lambda: ELBO, step=of(None, None)),
    "elbo, score function": closure(
        lambda: objectives.make_elbo(VAE, estimators.score_function("leave_one_out"), 2), step=of(None, None)
    ),
    "iwae": closure(lambda: objectives.make_iwae(VAE, estimators.doubly_reparameterized(), 2), step=of(None, None)),
    "per example": closure(lambda: objectives.per_example(ELBO), step=of(None, None)),
    "miwae": closure(lambda: objectives.make_miwae(VAE, num_samples=4, num_groups=2), step=of(None, None)),
    "piwae": closure(lambda: objectives.make_piwae(VAE, num_samples=4, num_groups=2), step=of(None, None)),
    "ciwae": closure(lambda: objectives.make_ciwae(VAE, 0.5, num_samples=2), step=of(None, None)),
    "wake-sleep": closure(lambda: objectives.make_wake_sleep(VAE, 2), step=of(None, None)),
    "thermodynamic": closure(lambda: objectives.make_thermodynamic(VAE, num_samples=2), step=of(None, None)),
    "free bits": closure(lambda: objectives.make_free_bits(VAE, 0.1), step=of(None, None)),
    "info vae": closure(lambda: objectives.make_info_vae(VAE, 0.1), step=of(None, None)),
    "linear elbo": closure(
        lambda: objectives.make_linear_elbo(LINEAR),
        step=of(None, None),
        params=of("linear params", lambda: params_of(LINEAR)),
        x=of("real data", X),
    ),
    "optimal std": closure(
        lambda: objectives.make_optimal_std_elbo(LINEAR),
        step=of(None, None),
        params=of("linear params", lambda: params_of(LINEAR)),
        x=of("real data", X),
    ),
    "reconstruction": closure(
        lambda: autoencoders.make_reconstruction(POINT),
        step=of(None, None),
        params=of("linear params", lambda: params_of(POINT)),
        x=of("real data", X),
    ),
    "vector quantization": closure(
        lambda: autoencoders.make_vector_quantization(VQ),
        step=of(None, None),
        params=of("linear params", lambda: params_of(VQ)),
        x=of("real data", X),
    ),
    **{
        name: closure(make, params=of("gan params", lambda: params_of(GAN)), step=of(None, None))
        for name, make in {
            "minimax": lambda: adversarial.make_minimax(GAN),
            "non-saturating": lambda: adversarial.make_non_saturating(GAN),
        }.items()
    },
    "expectation": closure(
        lambda: estimators.expectation(estimators.pathwise(), lambda m: dist.Normal(m, 1.0), lambda m, z: m * z, 2),
        params=of(None, 1.0),
    ),
    "train step": closure(lambda: training.make_train_step(ELBO, SGD), **of_state),
    "prepared train step": closure(
        lambda: training.make_train_step(ELBO, SGD, vaejax.data.binarize_threshold), **of_state
    ),
    "em step": closure(
        lambda: inference.make_em_step(LINEAR), state=of("state", lambda: state_of(LINEAR)), batch=of("real data", X)
    ),
    "variational em step": closure(
        lambda: inference.make_variational_em_step(ELBO, SGD, SGD),
        state=of("state", lambda: inference.init_groups(params_of(VAE), SGD, SGD)),
        batch=of("data", X),
    ),
    "aggressive step": closure(
        lambda: inference.make_aggressive_train_step(VAE, ELBO, SGD, SGD, X, batch_size=2, max_encoder_steps=1),
        state=of("state", lambda: inference.init_lagging(params_of(VAE), SGD, SGD)),
        batch=of("data", X),
    ),
    "noise": closure(lambda: autoencoders.gaussian_noise(0.1), x=of("numbers", X)),
    "mask": closure(lambda: autoencoders.masking_noise(0.1), x=of("numbers", X)),
    "dropout": closure(lambda: autoencoders.nested_dropout([0.5, 0.5]), x=of("numbers", Z)),
    "random affine": closure(lambda: augmentation.random_affine()),
}


def is_record(value: Any) -> bool:
    """Whether a class only holds what it is given: a tuple with names, a dataclass or a protocol."""
    return inspect.isclass(value) and (
        issubclass(value, tuple) or hasattr(value, "__dataclass_fields__") or getattr(value, "_is_protocol", False)
    )


def is_distribution(value: Any) -> bool:
    """Whether a class is a distribution: numpyro checks its arguments where its user asks for it."""
    return inspect.isclass(value) and issubclass(value, dist.Distribution)


# Public functions that are not called with wrong arguments, and why.
OWN_ESTIMATOR = "a part for estimators of one's own, called within their program"
IN_PROGRAM = "it runs in the compiled program of a function that has checked its arguments"
LAYER = "the maths of a layer or a head"
EXEMPT = {
    **dict.fromkeys(
        ("detached", "with_detached", "without_gradient_of_nothing", "bounds_with_replaced"), OWN_ESTIMATOR
    ),
}
EXEMPT = {f"estimators.{name}": reason for name, reason in EXEMPT.items()} | {
    "baselines.less_variance": OWN_ESTIMATOR,
    "distributions.is_relaxed": OWN_ESTIMATOR,
    "distributions.held_log_prob": OWN_ESTIMATOR,
    "distributions.held_sample": OWN_ESTIMATOR,
    "distributions.own_log_prob": OWN_ESTIMATOR,
    "distributions.sample_with_log_prob": OWN_ESTIMATOR,
    "distributions.like_samples": OWN_ESTIMATOR,
    "monte_carlo.over_draws": OWN_ESTIMATOR,
    "monte_carlo.over_indices": OWN_ESTIMATOR,
    "monte_carlo.over_points": OWN_ESTIMATOR,
    "monte_carlo.with_gradient_of": OWN_ESTIMATOR,
    "estimators.baseline_values": OWN_ESTIMATOR,
    "evaluation.encoder_draws": IN_PROGRAM,
    **{f"evaluation.{name}": "it asks for shapes" for name in ("like_posterior", "latent_dtype", "number_of")},
    "monte_carlo.over_examples": IN_PROGRAM,
    "evaluation.bias_of_log_mean": IN_PROGRAM,
    "evaluation.mean_and_error": IN_PROGRAM,
    "evaluation.over_batch": IN_PROGRAM,
    "evaluation.posterior_means": IN_PROGRAM,
    "evaluation.posterior_moments": IN_PROGRAM,
    "evaluation.reconstructions_and_samples": IN_PROGRAM,
    "evaluation.encoder_density": IN_PROGRAM,
    "evaluation.prior_density": IN_PROGRAM,
    "distributions.bounded_log_std": LAYER,
    "distributions.unbounded_log_std": LAYER,
    "distributions.standard_normal": LAYER,
    "networks.doubling_product": LAYER,
    "networks.halving_product": LAYER,
    "networks.of_any_batch": LAYER,
    "distributions.log_prob_per_unit": LAYER,
    "distributions.side_by_side": "the caller names its arguments; they are tested in test_named_parts.py",
    "streams.open_source": "it needs files of TFDS; its names and splits are tested in data/",
    "streams.open_labelled_source": "as open_source",
    "devices.compile_for": "it needs the compilers of accelerators; its arguments are tested in test_compile_for.py",
    "devices.devices_of": "as compile_for",
    "devices.machine_of": "as compile_for",
    "training.DivergedError": "an error",
}


def public() -> dict[str, Any]:
    """All public functions and classes of all rooms, by room and name; one that two rooms show is there once."""
    found: dict[int, tuple[str, Any]] = {}
    for room in vaejax.__all__:
        face = getattr(vaejax, room)
        if not inspect.ismodule(face):
            continue
        names = getattr(face, "__all__", None) or [
            name for name, value in vars(face).items() if getattr(value, "__module__", None) == face.__name__
        ]
        for name in names:
            value = getattr(face, name)
            jitted = callable(value) and hasattr(value, "lower")
            if name[0] != "_" and (inspect.isfunction(value) or inspect.isclass(value) or jitted):
                found.setdefault(id(value), (f"{room}.{name}", value))
    return dict(found.values())


@functools.cache
def calls() -> dict[str, Call]:
    """The calls of `CALLS`, and of every other public function that `NAMED` suffices for."""
    known = dict(CALLS)
    for name, value in public().items():
        if name not in known and name not in EXEMPT and not is_record(value) and not is_distribution(value):
            known[name] = call(value)
    return known
