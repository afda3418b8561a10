import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import models, objectives


def weights(schedule, steps):
    return np.array([float(schedule(jnp.asarray(step))) for step in steps])


def test_linear_warmup():
    schedule = objectives.linear_warmup(100, start=0.2, end=0.7)
    np.testing.assert_allclose(weights(schedule, (0, 50, 100, 10_000)), [0.2, 0.45, 0.7, 0.7], rtol=1e-6)


def test_cyclical_warmup():
    schedule = objectives.cyclical(100, start=0.1, end=1.1, rising=0.25)
    np.testing.assert_allclose(
        weights(schedule, (0, 10, 25, 99, 100, 110, 10**7)), [0.1, 0.5, 1.1, 1.1, 0.1, 0.5, 0.1], rtol=1e-5
    )


def test_schedules_are_traced():
    steps = jnp.arange(30)
    for schedule in (objectives.linear_warmup(10), objectives.cyclical(10)):
        inside = jax.jit(jax.vmap(schedule))(steps)
        np.testing.assert_allclose(inside, weights(schedule, range(30)), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: objectives.linear_warmup(0), "num_steps must be an integer of at least 1; got 0"),
        (
            lambda: objectives.linear_warmup(10, start=-0.1),
            "start must be a number of at least 0; got -0.1: it is",
        ),
        (lambda: objectives.cyclical(0), "period must be an integer of at least 1; got 0"),
        (lambda: objectives.cyclical(10, rising=0.0), "rising must be a number above 0 and at most 1; got 0.0"),
        (lambda: objectives.cyclical(10, end=float("nan")), "end must be a number of at least 0; got nan"),
    ],
)
def test_bad_schedules_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_schedule_that_turns_negative_is_refused_or_nan():
    vae = models.mlp_vae((3,), 2, (4,))
    with pytest.raises(
        ValueError, match=r"beta at step 10 must be .* at least 0; got .*-9.*: bound the schedule from below"
    ):
        objectives.make_elbo(vae, beta=lambda step: 1 - jnp.asarray(step, jnp.float32))
    # Where no step that was looked at gives it away the objective is NaN, and not a number.
    hidden = objectives.make_elbo(vae, beta=lambda step: jnp.where(step == 7, -1.0, 1.0))
    params, x = vae.init(jax.random.key(0)), jnp.ones((2, 3))
    assert jnp.isnan(hidden(params, jax.random.key(1), x, step=7)[0])
    assert jnp.isfinite(hidden(params, jax.random.key(1), x, step=8)[0])
