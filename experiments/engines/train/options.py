"""The options of `train.py`, in the groups in which its --help shows them."""

import dataclasses
from typing import Literal

from engines.harness import command_line


@dataclasses.dataclass(frozen=True)
class Data(command_line.BinarizedDataOptions):
    """What is learned from."""

    dataset: str = "digits"
    """digits, two_gaussians, spiral, linear_gaussian (embedded), or any TFDS image set such as mnist."""
    condition_on: Literal["nothing", "label"] = "nothing"
    """What encoder and decoder get beside the image: nothing, or its label, one-hot."""
    missing: float = 0.0
    """Share of the numbers of each example that are missing, always the same: the likelihood is that of the others, and
    the encoder sees zeros and where they are."""
    stream: bool = False
    """Read the training images from disk batch by batch, where memory does not hold them."""


@dataclasses.dataclass(frozen=True)
class Model:
    """p(x|z), q(z|x) and p(z)."""

    model: Literal["mlp", "conv", "linear", "hierarchical"] = "mlp"
    """Networks of encoder and decoder; hierarchical: an mlp with more stochastic layers on top, which conv may have too
    (--upper-latent-dims)."""
    latent_dim: int = 2
    """Numbers in z, the latent variable of one example; of a model with several layers, in the lowest."""
    upper_latent_dims: tuple[int, ...] = ()
    """Numbers in each further layer of z, of hierarchical by default one layer of half as many, of conv none."""
    upper_hidden_sizes: tuple[int, ...] = ()
    """Hidden units between two layers of z, by default half of --hidden-sizes, of conv of its dense units."""
    hidden_sizes: tuple[int, ...] = ()
    """Hidden units (mlp, by default 200 200), or channels and then dense units (conv, by default 32 64 256)."""
    activation: Literal["tanh", "relu", "gelu", "elu", "softplus", "sigmoid", "gated"] = "tanh"
    """After each hidden layer; gated: the sigmoids of as many units more multiply them."""
    likelihood: Literal[
        "bernoulli",
        "gaussian",
        "gaussian_shared_std",
        "gaussian_fixed_std",
        "continuous_bernoulli",
        "beta",
        "categorical_pixels",
        "discretized_logistic_mixture",
        "poisson",
        "negative_binomial",
        "zero_inflated_negative_binomial",
    ] = "bernoulli"
    """p(x|z): Bernoulli; Gaussian with a learned std per pixel, one learned std, or --likelihood-std; of grey pixels
    continuous_bernoulli and beta; of --binarization levels the next two, and the last three, which are of counts. Of an
    autoencoder only its mean counts: bernoulli keeps it within 0 and 1 by a sigmoid, the Gaussian ones do not."""
    likelihood_std: float = 1.0
    """The std of gaussian_fixed_std."""
    posterior: Literal["gaussian", "full_covariance", "flow", "bernoulli", "categorical", "point"] = "gaussian"
    """q(z|x), and with it the prior: Gaussian with independent latents or with a full covariance, a Gaussian through an
    inverse autoregressive flow; bernoulli and categorical have no reparameterization, point is no density."""
    prior: Literal["standard", "mixture", "vamp", "flow"] = "standard"
    """p(z): standard normal (of other posteriors the plainest of their family), or learned: a mixture of Gaussians, the
    mean of q(z|u) over pseudo-inputs u, or a flow. A learned one wants --kl sampled."""
    prior_components: int = 100
    """Gaussians of --prior mixture, pseudo-inputs of --prior vamp."""
    prior_layers: int = 4
    """Coupling layers of --prior flow."""
    num_categories: int = 10
    """Of each number in a categorical z."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the networks' arithmetic; parameters, gradients and densities are in float32 anyway."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is maximised, and how its gradient is estimated."""

    objective: Literal["elbo", "iwae", "renyi", "free_bits", "info_vae", "optimal_std", "reconstruction"] = "elbo"
    """Evidence lower bound; importance-weighted or Renyi bound (--alpha); with --free-bits, with an MMD term
    (--mmd-weight) or with the best std of a Gaussian likelihood; or an autoencoder's reconstruction."""
    alpha: float = 0.5
    """Of --objective renyi: 0 is the importance-weighted bound, 1 the ELBO."""
    free_bits: float = 0.1
    """Of --objective free_bits: nats of the KL of each latent that cost nothing."""
    mmd_weight: float = 100.0
    """Of --objective info_vae."""
    error: Literal["squared_error", "cross_entropy", "negative_log_likelihood"] = "squared_error"
    """Of --objective reconstruction."""
    corruption: Literal["none", "gaussian", "masking"] = "none"
    """Of the input of --objective reconstruction, which makes it a denoising autoencoder."""
    corruption_level: float = 0.5
    """Std of the gaussian one, probability of the masking one."""
    kl: Literal["analytic", "sampled", "entropy"] = "analytic"
    """Form of the ELBO. The importance-weighted bound always samples it."""
    beta: tuple[float, ...] = (1.0,)
    """Weight of the KL; of several each is trained."""
    kl_warmup_steps: int = 0
    """Steps over which that weight rises from 0, linearly."""
    kl_cycle_steps: int = 0
    """Steps of one cycle of warm-up: the weight rises from 0 over the first half, again and again."""
    num_samples: int = 1
    """K, samples of z for each example in training."""
    chunk_size: int = 0
    """How many of them are evaluated at once, which sets the memory; 0: all."""
    estimator: Literal[
        "pathwise",
        "sticking_the_landing",
        "doubly_reparameterized",
        "score_function",
        "vimco",
        "measure_valued",
        "enumerate_support",
        "ovis",
        "disarm",
        "arms",
        "muprop",
        "double_control_variates",
        "rodeo",
        "rebar",
        "relax",
        "gumbel_softmax",
        "straight_through",
        "reinmax",
    ] = "pathwise"
    """Of the gradient: reparameterized (the first three), REINFORCE, of importance weights (vimco, ovis) or at points
    of its own choosing; from disarm on for --posterior bernoulli, some of them also for categorical, the last three of
    them biased."""
    temperature: float = 0.5
    """Of --estimator rebar and relax, at the start, and of gumbel_softmax."""
    baseline: Literal["none", "leave_one_out", "moving_average", "nvil"] = "none"
    """Of the score function; leave-one-out needs --num-samples 2 or more."""
    inference: Literal["amortized", "aggressive", "em"] = "amortized"
    """How encoder and decoder take turns: together; the encoder to convergence before each step of the decoder, while
    that raises the mutual information; or EM, exact for a linear model with one learned std, else one gradient step of
    the encoder and then one of the decoder."""
    max_encoder_steps: int = 10
    """Of --inference aggressive, for each step of the decoder."""


@dataclasses.dataclass(frozen=True)
class Training:
    """Steps and their lengths."""

    batch_size: int = 100
    """Examples in a batch."""
    num_steps: int = 6000
    """Steps at the most."""
    patience: int = 0
    """Stop where the last this many reports have not raised the best validation ELBO by --tolerance; 0: never."""
    tolerance: float = 0.05
    """For --patience, in nats per example."""
    validation_samples: int = 1
    """K of the bound on validation images between reports: 1 is the ELBO."""
    learning_rate: tuple[float, ...] = (2e-3,)
    """At the start; of several each is trained."""
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Constant, or down to 0 at the last step."""
    learning_rate_warmup_steps: int = 0
    """Steps over which it first rises from 0, linearly."""
    optimizer: Literal["adam", "adagrad", "rmsprop", "sgd"] = "adam"
    """From optax, with its defaults."""
    max_gradient_norm: float = 0.0
    """Longer gradients are cut to this length before the optimizer; 0: none is."""
    weight_decay: float = 0.0
    """Of the layers' kernels, not of biases or standard deviations; with adam it is AdamW's."""
    accumulate_steps: int = 1
    """Steps whose gradients are averaged into one update of the parameters."""
    start_from: str | None = None
    """Folder of a run of the same model, such as runs/mnist, from whose trained parameters this one starts, to go on
    under other options; not its averages. By default they are drawn anew."""
    averages: float = 0.0
    """Decay of an exponential moving average of the parameters, which is then what is evaluated and drawn; 0: none. The
    checkpoint holds both."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Several runs, and the devices on which they go."""

    seed: int = 0
    """Of parameters, order and noise."""
    seeds: int = 1
    """Runs of each kind, with this seed and those after it. Several runs, of seeds, weights or rates, are trained in
    one program, and their numbers come with a standard error over seeds."""
    group_size: int = 0
    """Of several runs, how many go side by side; 0: as many as pay on this machine and fit into a gigabyte."""
    devices: int = 1
    """Over how many devices each batch is spread; of several runs, the runs."""
    distributed: bool = False
    """This is one of several processes, each started by the same command, on hosts that JAX finds by itself on Slurm,
    Kubernetes, Open MPI and TPU pods; elsewhere set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."""


@dataclasses.dataclass(frozen=True)
class Files:
    """What is measured at the end, and where everything is kept."""

    eval_samples: int = 1000
    """K of the test log p(x)."""
    checkpoint_seconds: float = 10.0
    """A checkpoint at the first report after this long; 0: at every report."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too, into the run's folder."""
    runs_dir: str = "runs"
    """Where runs are kept."""
    name: str | None = None
    """Folder of this run in runs_dir; by default the dataset's name, with a number if it is taken."""
    resume: bool = False
    """Continue from the last checkpoint of the run of that name (by default the newest of this dataset)."""
