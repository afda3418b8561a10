"""The networks of the models, as pure `(init, apply)` pairs: perceptrons, an LSTM step, convolutions."""

from vaejax.models.networks.activations import ACTIVATIONS, Activation, activation_function
from vaejax.models.networks.adapters import Network, as_network, check_alone, from_linen, from_nnx, in_dtype
from vaejax.models.networks.convolutions import doubling_product, halving_product
from vaejax.models.networks.images import conv_decoder, conv_encoder
from vaejax.models.networks.perceptrons import linear_kernel, lstm, mlp, of_any_batch, residual_mlp

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Network",
    "activation_function",
    "as_network",
    "check_alone",
    "conv_decoder",
    "conv_encoder",
    "doubling_product",
    "from_linen",
    "from_nnx",
    "halving_product",
    "in_dtype",
    "linear_kernel",
    "lstm",
    "mlp",
    "of_any_batch",
    "residual_mlp",
]
