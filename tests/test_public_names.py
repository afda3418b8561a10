"""The public names of the first version stay where they were, in the rooms up to the models."""

import pytest

import vaejax

FORMER = {
    "augmentation": "Transform affine partly random_affine",
    "data": """
        BINARIZATIONS Dataset LinearGaussian binarization binarize_dynamic binarize_threshold check_finite
        linear_gaussian linear_gaussian_parameters load names spiral two_gaussians
    """,
    "devices": "BATCH RUNS SAMPLES make_mesh meet replicate size spread",
    "distributions": """
        BernoulliLogits Head LIKELIHOODS LOG_STD_BOUND POSTERIORS Params bernoulli bounded_log_std categorical center
        check_has_density check_support data_log_prob entropy gaussian gaussian_fixed_std gaussian_shared_std in_support
        kl_divergence kl_per_unit like_samples likelihood_head log_prob name_of point posterior_head sample
        standard_normal unbounded_log_std without_wrappers
    """,
    "families": "Erlang F Rayleigh Triangular",
    "models": """
        VAE check_data check_floating checked_data conv_vae linear_vae make_vae mlp_vae sample_data
        with_batch_axis with_output_bias
    """,
    "networks": """
        ACTIVATIONS Activation Network activation_function as_network conv_decoder conv_encoder doubling_product
        from_linen from_nnx halving_product in_dtype linear_kernel lstm mlp
    """,
    "reparameterization": "FAMILIES Family check_fixed_support",
    "sequences": "TokenSequences Writer draw latent_lstm lstm_vae",
    "streams": "Source Stream as_numbers make_stream open_source read",
    "two_sample": "Distance Kernel energy_distance maximum_mean_discrepancy median_bandwidth p_value",
}


@pytest.mark.parametrize("module", FORMER)
def test_a_public_name_stays_where_it_was(module):
    absent = [name for name in FORMER[module].split() if not hasattr(getattr(vaejax, module), name)]
    assert not absent
