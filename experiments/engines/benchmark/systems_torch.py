"""The systems of `benchmark.py` that run on PyTorch: as it is, and by `torch.compile`."""

import functools
import math
import os

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from engines.benchmark.work import LEARNING_RATE, NUM_CHECKED, Layers, Make, Work
from engines.harness.rows import mean_and_error

torch.set_num_threads(os.cpu_count() or 1)

ACTIVATIONS = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": functools.partial(functional.gelu, approximate="tanh"),  # as JAX's
}


class _Encoder(nn.Module):
    def __init__(self, work: Work, layers: Layers):
        super().__init__()
        self.work = work
        self.layers = nn.ModuleList([_layer(weight, bias, False) for weight, bias in layers])

    def forward(self, x):
        activation = ACTIVATIONS[self.work.activation]
        for i, layer in enumerate(self.layers):
            if isinstance(layer, nn.Linear) and x.dim() > 2:
                # Channels last, as the weights of all systems are meant.
                x = (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).flatten(1)
            x = layer(x)
            x = activation(x) if i < len(self.layers) - 1 else x
        return x.chunk(2, dim=-1)


class _Decoder(nn.Module):
    def __init__(self, work: Work, layers: Layers):
        super().__init__()
        self.work = work
        self.layers = nn.ModuleList([_layer(weight, bias, True) for weight, bias in layers])

    def forward(self, z):
        activation = ACTIVATIONS[self.work.activation]
        x = z
        for i, layer in enumerate(self.layers):
            if isinstance(layer, nn.ConvTranspose2d) and x.dim() == 2:
                side = math.isqrt(x.shape[1] // layer.in_channels)
                x = x.reshape(-1, side, side, layer.in_channels).permute(0, 3, 1, 2)
            x = layer(x)
            x = activation(x) if i < len(self.layers) - 1 else x
        return x.flatten(1)


def _layer(weight: np.ndarray, bias: np.ndarray, transposed: bool) -> nn.Module:
    if weight.ndim == 2:
        layer = nn.Linear(*weight.shape)
        turned = weight.T
    elif transposed:
        layer = nn.ConvTranspose2d(weight.shape[2], weight.shape[3], 4, stride=2, padding=1)
        turned = weight[::-1, ::-1].transpose(2, 3, 0, 1)  # flax's kernel is a correlation
    else:
        layer = nn.Conv2d(weight.shape[2], weight.shape[3], 4, stride=2, padding=1)
        turned = weight.transpose(3, 2, 0, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(turned)))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer


class Torch:
    """A VAE as PyTorch's own example writes it; `compiled` passes the loss through `torch.compile`."""

    def __init__(self, work: Work, encoder: Layers, decoder: Layers, images: np.ndarray, compiled: bool):
        torch.manual_seed(0)
        self.work = work
        self.images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy() if work.is_conv else images)
        self.encoder, self.decoder = _Encoder(work, encoder), _Decoder(work, decoder)
        self.parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LEARNING_RATE)
        self.done, self.beta = 0, torch.ones(()) if work.recipe else None
        self.loss = torch.compile(self._loss) if compiled else self._loss
        self.estimate = torch.compile(self._estimate) if compiled else self._estimate

    def _log_likelihood(self, z, x):
        outputs = self.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        x = x.flatten(1).expand_as(outputs)
        if self.work.is_conv:
            return (-0.5 * (x - outputs) ** 2 - 0.5 * math.log(2 * math.pi)).sum(dim=-1)
        return -functional.binary_cross_entropy_with_logits(outputs, x, reduction="none").sum(dim=-1)

    def _sampled(self, x, number: int):
        mean, log_std = self.encoder(x)
        return mean, log_std, mean + log_std.exp() * torch.randn(number, *mean.shape)

    def _log_w(self, x, number: int):
        mean, log_std, z = self._sampled(x, number)
        constant = 0.5 * math.log(2 * math.pi)
        log_q = (-0.5 * ((z - mean) / log_std.exp()) ** 2 - log_std - constant).sum(dim=-1)
        return self._log_likelihood(z, x) - self._weighted(log_q - (-0.5 * z**2 - constant).sum(dim=-1))

    def _weighted(self, kl):
        return kl if self.beta is None else self.beta * kl

    def _loss(self, x):
        work = self.work
        if work.objective == "iwae":
            return -(self._log_w(x, work.num_samples).logsumexp(dim=0) - math.log(work.num_samples)).mean()
        mean, log_std, z = self._sampled(x, work.num_samples)
        kl = 0.5 * (mean**2 + (2 * log_std).exp() - 2 * log_std - 1).sum(dim=-1)
        if work.objective == "elbo":
            return -(self._log_likelihood(z, x).mean(dim=0) - self._weighted(kl)).mean()
        z = z.detach()
        log_q = (-0.5 * ((z - mean) / log_std.exp()) ** 2 - log_std).sum(dim=-1)
        f = self._log_likelihood(z, x)
        rewards, number = f.detach(), work.num_samples
        advantage = (rewards - (rewards.sum(dim=0) - rewards) / (number - 1)) / number
        surrogate = (f.mean(dim=0) + (advantage * log_q).sum(dim=0) - kl).mean()
        return -(surrogate + ((rewards.mean(dim=0) - kl).mean() - surrogate).detach())

    def _estimate(self, x):
        return self._log_w(x, self.work.num_samples).logsumexp(dim=0) - math.log(self.work.num_samples)

    def value(self) -> tuple[float, float]:
        """As the systems on JAX."""
        checked = self.images[:NUM_CHECKED]
        if self.work.kind == "moments":
            return float(self._moments(checked, 1000)), math.nan
        with torch.no_grad():
            if self.work.kind == "likelihood":
                return float(torch.cat([self.estimate(x[None]) for x in checked[:20]]).mean()), math.nan
            values = [-float(self._loss(checked)) for _ in range(50)]
        return mean_and_error(values)

    def _moments(self, x, number: int):
        total, squares = 0.0, 0.0
        for _ in range(number):
            grads = torch.autograd.grad(self.loss(x), self.parameters)
            flat = torch.cat([grad.flatten() for grad in grads])
            total, squares = total + flat, squares + flat**2
        return ((squares - total**2 / number) / (number - 1)).sum()

    def advance(self, units: int) -> None:
        """One step after another."""
        work = self.work
        if work.kind == "moments":
            self._moments(self.images[: work.batch_size], units)
            return
        if work.kind == "likelihood":
            with torch.no_grad():
                for i in range(units * work.batch_size):
                    self.estimate(self.images[i % len(self.images)][None])
            return
        order = torch.randperm(len(self.images))
        for i in range(units):
            start = i * work.batch_size % (len(order) - work.batch_size + 1)
            if work.recipe:
                self.optimizer.param_groups[0]["lr"] = float(work.recipe.rates[self.done])
                self.beta.fill_(float(work.recipe.betas[self.done]))
            self.optimizer.zero_grad()
            self.loss(self.images[order[start : start + work.batch_size]]).backward()
            self.optimizer.step()
            self.done += 1

    def compile(self) -> None:
        """Without a step."""
        self.loss(self.images[: self.work.batch_size]).backward()

    def layers(self) -> tuple[Layers, Layers]:
        """The weights of encoder and decoder now; of dense ones alone."""
        encoder, decoder = (
            [(layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy()) for layer in network.layers]
            for network in (self.encoder, self.decoder)
        )
        return encoder, decoder


MAKE: dict[str, Make] = {
    "torch-eager": functools.partial(Torch, compiled=False),
    "torch-compile": functools.partial(Torch, compiled=True),
}
