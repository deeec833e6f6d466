"""What the latents add to the rows, each against a loop or a closed form."""

from dataclasses import replace

import torch
from torch import distributions

from papers.clarity.measure import AggregatePosterior


def test_the_aggregate_posterior_is_a_mixture_of_normals(systems, digits):
    train = replace(digits, labels=torch.arange(16) % 3)
    z, target = torch.randn(150, 4, generator=torch.Generator().manual_seed(0)), torch.arange(150) % 3
    mean, std = systems.vae.latents(train.images)
    found = AggregatePosterior(systems.vae, train).negative_log_likelihood(z, target)
    for label in range(3):
        theirs, mine = train.labels == label, target == label
        parts = distributions.Independent(distributions.Normal(mean[theirs], std[theirs]), 1)
        mixture = distributions.MixtureSameFamily(distributions.Categorical(torch.ones(int(theirs.sum()))), parts)
        assert torch.allclose(found[mine], -mixture.log_prob(z[mine]), rtol=1e-4, atol=1e-4)
