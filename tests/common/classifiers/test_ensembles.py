"""Ensembles in one batched network against Python loops over their members, and the closed forms of combining them."""

import pytest
import torch
import torch.nn.functional as F

from common.classifiers.ensembles import ARCHITECTURES, Ensemble, Recipe, combine, fit_temperature, train_ensemble
from common.errors import VceError

SHAPES = {
    "mlp": (6,),
    "latent_cnn": (3, 4, 4),
    "schut_mlp": (1, 8, 8),
    "pixel_cnn": (3, 8, 8),
    "texture_cnn": (3, 8, 8),
}
K, M, N = 4, 3, 7
combinations = pytest.mark.parametrize("combination", ["mixture", "mean-log"])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def create(architecture="mlp", members=M, seed=0, sharpness=8.0, **settings):
    """Untrained members whose last layer is scaled up, so that they disagree."""
    ensemble = Ensemble.create(architecture, SHAPES[architecture], K, members, seed, **settings)
    last = list(ensemble.state)[-2]
    ensemble.state[last].mul_(sharpness)
    return ensemble


def inputs(architecture="mlp", n=N):
    shape = SHAPES[architecture]
    return draw(n, 48) if architecture == "latent_cnn" else draw(n, *shape)


def members_of(ensemble):
    """The members as plain networks."""
    networks = []
    for m in range(len(ensemble)):
        network = ARCHITECTURES[ensemble.architecture](ensemble.shape, ensemble.n_classes)
        network.load_state_dict({name: value[m] for name, value in ensemble.state.items()})
        networks.append(network)
    return networks


def gradient(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def test_every_architecture_is_tested():
    assert SHAPES.keys() == ARCHITECTURES.keys()


# the batched network


@combinations
@pytest.mark.parametrize("architecture", SHAPES)
def test_vmap_is_a_loop_over_members(architecture, combination):
    ensemble, x = create(architecture, temperature=0.7, combination=combination), inputs(architecture)
    networks = members_of(ensemble)

    def by_loop(x):
        log_p = [(network(x) / 0.7).log_softmax(1) for network in networks]
        if combination == "mixture":
            return torch.stack([p.exp() for p in log_p]).mean(0).log()
        return torch.stack(log_p).mean(0).log_softmax(1)

    assert len(ensemble) == M and ensemble.logits(x).shape == (M, N, K)
    assert torch.allclose(ensemble.logits(x), torch.stack([network(x) for network in networks]), atol=1e-5)
    assert torch.allclose(ensemble(x), by_loop(x), atol=1e-5)
    for k in range(K):
        found, expected = (gradient(lambda x, f=f, k=k: f(x)[:, k], x) for f in (ensemble, by_loop))
        assert torch.allclose(found, expected, atol=1e-5) and expected.abs().max() > 0.01


@pytest.mark.parametrize("architecture", SHAPES)
def test_members_and_samples_do_not_see_each_other(architecture):
    ensemble, x = create(architecture), inputs(architecture)
    before = ensemble.logits(x)
    x[2] = torch.nan
    next(iter(ensemble.state.values()))[1] = torch.nan
    after, rest = ensemble.logits(x), [i for i in range(N) if i != 2]
    assert torch.equal(after[[0, 2]][:, rest], before[[0, 2]][:, rest])
    assert after[1].isnan().all() and after[:, 2].isnan().all()


@pytest.mark.parametrize("architecture", SHAPES)
def test_only_is_slicing(architecture):
    ensemble, x = create(architecture, temperature=1.7, combination="mean-log"), inputs(architecture)
    for rows in ([2, 0], [1], range(M)):
        some = ensemble.only(rows)
        assert (
            len(some) == len(rows)
            and some.combination == "mean-log"
            and some.temperature.item() == ensemble.temperature
        )
        assert torch.allclose(some.logits(x), ensemble.logits(x)[list(rows)], atol=1e-5)
        sliced = ensemble.member_log_probabilities(x)[list(rows)]
        assert torch.allclose(some(x), combine(sliced, "mean-log"), atol=1e-5)
    changed = ensemble.only([0, 1], temperature=0.5, combination="mixture")
    by_hand = combine((ensemble.logits(x)[:2] / 0.5).log_softmax(2), "mixture")
    assert torch.allclose(changed(x), by_hand, atol=1e-5)


def test_a_part_is_its_own_ensemble():
    ensemble, x = create(temperature=1.7), inputs()
    before, part = ensemble(x), ensemble.only([0, 1])
    fit_temperature(part, inputs(n=50), torch.arange(50) % K)
    for value in part.state.values():
        value.zero_()
    assert ensemble.temperature.item() == pytest.approx(1.7) and torch.equal(ensemble(x), before)


@combinations
def test_order_of_members_does_not_matter(combination):
    ensemble, x = create(members=5, combination=combination), inputs()
    assert torch.allclose(ensemble.only([3, 0, 4, 2, 1])(x), ensemble(x), atol=1e-5)


def test_members_are_initialised_one_after_the_other():
    before = torch.random.get_rng_state()
    five, two, other = (Ensemble.create("pixel_cnn", (3, 8, 8), K, m, seed) for m, seed in ((5, 0), (2, 0), (2, 1)))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in two.state.items():
        assert torch.equal(five.state[name][:2], value)
        assert not torch.equal(value[0], value[1]) and not torch.equal(value, other.state[name])


def test_unknown_architectures_are_refused():
    for build in (Ensemble.create("mlp", (6,), K, 2, 0).state, None):
        with pytest.raises(VceError, match="architecture 'resnet' is unknown; choose one of mlp, "):
            Ensemble("resnet", (6,), K, build) if build else Ensemble.create("resnet", (6,), K, 2, 0)


# the combinations


@combinations
@pytest.mark.parametrize("members", [1, M])
def test_probabilities_sum_to_one(combination, members):
    ensemble, x = create(members=members, temperature=0.2, combination=combination), 10 * inputs()
    assert torch.allclose(ensemble(x).exp().sum(1), torch.ones(N), atol=1e-5)
    assert torch.allclose(ensemble.member_log_probabilities(x).exp().sum(2), torch.ones(members, N), atol=1e-5)


def test_mean_log_is_the_softmax_of_mean_logits():
    ensemble, x = create(temperature=0.7, combination="mean-log"), inputs()
    assert torch.allclose(ensemble(x), (ensemble.logits(x).mean(0) / 0.7).log_softmax(1), atol=1e-5)
    product = ensemble.member_log_probabilities(x).exp().prod(0) ** (1 / M)
    assert torch.allclose(ensemble(x).exp(), product / product.sum(1, keepdim=True), atol=1e-5)


def test_mixture_gradient_is_the_weighted_sum_of_member_gradients():
    ensemble, x = create(temperature=0.7), inputs()
    for target in range(K):
        log_p = ensemble.member_log_probabilities(x)[..., target]
        weight = log_p.exp() / log_p.exp().sum(0)
        each = torch.stack(
            [gradient(lambda x, m=m, t=target: ensemble.member_log_probabilities(x)[m, :, t], x) for m in range(M)]
        )
        found = gradient(lambda x, t=target: ensemble(x)[:, t], x)
        assert torch.allclose(found, (weight[..., None] * each).sum(0), atol=1e-5)
        assert (weight.max(0).values > 0.6).any()  # a member leads


def test_saturated_members_are_numbers():
    log_p = torch.tensor([[[0.0, -400.0]], [[-1.0, -0.46]]])
    mixture, mean_log = combine(log_p, "mixture"), combine(log_p, "mean-log")
    assert mixture[0, 1].item() == pytest.approx(-0.46 - torch.tensor(2.0).log().item())
    assert mean_log[0].tolist() == pytest.approx([0, -199.73], abs=1e-3)


# the temperature


def labels_from(log_p, seed=0):
    return torch.multinomial(log_p.exp(), 1, generator=torch.Generator().manual_seed(seed))[:, 0]


@combinations
@pytest.mark.parametrize("true", [0.3, 2.0])
def test_the_temperature_is_the_best_of_its_grid(combination, true):
    ensemble, x = create(sharpness=12.0, combination=combination), inputs(n=200)
    labels = labels_from(create(sharpness=12.0, temperature=true)(x))
    fit_temperature(ensemble, x, labels)
    logits = torch.stack([network(x).detach().double() for network in members_of(ensemble)])

    def loss(t):
        p = (logits / t).softmax(2)
        p = p.mean(0) if combination == "mixture" else p.log().mean(0).softmax(1)
        return -p[torch.arange(200), labels].log().mean().item()

    grid = torch.linspace(-3, 3, 400).exp()
    assert (grid == ensemble.temperature).sum() == 1 and 0.1 < ensemble.temperature < 10  # inside of it
    losses = [loss(t) for t in grid]
    assert loss(ensemble.temperature) == pytest.approx(min(losses), abs=1e-5)


def test_the_temperature_of_equal_members_is_found_again():
    one, x = create(members=1, sharpness=20.0), inputs(n=4_000)
    ensemble = one.only([0, 0, 0])
    for true in (0.5, 3.0):
        for combination in ("mixture", "mean-log"):
            ensemble.combination = combination
            fit_temperature(ensemble, x, labels_from(one.only([0], temperature=true)(x)))
            assert ensemble.temperature.item() == pytest.approx(true, rel=0.1)


# training


def blobs(n, seed=0, spread=1.0):
    """N×6 points around four corners and their labels."""
    labels = torch.arange(n) % K
    corners = 2 * torch.eye(K, 6)
    return corners[labels] + spread * draw(n, 6, seed=seed), labels


def brief(**fields):
    return Recipe(**{"architecture": "mlp", "members": M, "epochs": 3, "batch_size": 16, **fields})


def trained(recipe, x, labels, seed=0, progress=None, ensemble=None):
    ensemble = ensemble or Ensemble.create(recipe.architecture, x.shape[1:], K, recipe.members, seed)
    train_ensemble(ensemble, lambda rows, generator: x[rows], labels, recipe, seed, progress)
    return ensemble


def test_members_learn_and_differ():
    (x, labels), (held_out, truth) = blobs(200, spread=0.4), blobs(200, seed=1, spread=0.4)
    losses = []
    ensemble = trained(brief(epochs=6), x, labels, progress=lambda epoch: losses.append(epoch["loss"]))
    accuracy = (ensemble.logits(held_out).argmax(2) == truth).float().mean(1)
    assert (accuracy > 0.9).all() and len(losses) == 6 and losses[-1] < losses[0]
    log_p = ensemble.member_log_probabilities(held_out)
    assert all((log_p[a] - log_p[b]).abs().max() > 0.1 for a, b in ((0, 1), (0, 2), (1, 2)))
    assert not any(value.requires_grad for value in ensemble.state.values())


def test_same_seed_same_bits_and_the_global_stream_is_left_alone():
    x, labels = blobs(40)
    states = []
    for seed in (0, 0, 1):
        torch.rand(3)
        before = torch.random.get_rng_state()
        states.append(trained(brief(fgsm=0.1), x, labels, seed).state)
        assert torch.equal(torch.random.get_rng_state(), before)
    a, b, c = states
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in a)


def recorded(recipe, x, labels, ensemble):
    """The rows of each batch that training asks for, M×B each."""
    batches = []

    def inputs(rows, generator):
        batches.append(rows.clone())
        return x[rows]

    train_ensemble(ensemble, inputs, labels, recipe, 0)
    return batches


def test_each_member_sees_every_image_once_an_epoch_in_its_own_order():
    x, labels = blobs(40)
    recipe = brief(epochs=2)
    batches = recorded(recipe, x, labels, create())
    assert [rows.shape for rows in batches] == 2 * [(M, 16), (M, 16), (M, 8)]
    first, second = (torch.cat(batches[i : i + 3], 1) for i in (0, 3))
    for epoch in (first, second):
        assert torch.equal(epoch.sort(1).values, torch.arange(40).expand(M, 40))
        assert not torch.equal(epoch[0], epoch[1])
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("architecture", "fgsm"), [("mlp", 0.0), ("mlp", 0.07), ("pixel_cnn", 0.0)])
def test_training_is_a_loop_over_members(architecture, fgsm):
    """In float64: AdamW on one network at a time; with `fgsm` each batch joined by x + ε·sign(∇ₓ loss) in [0, 1]."""
    x, labels = (
        torch.rand(20, 1, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0)),
        torch.arange(20) % K,
    )
    x[:, :, :2] = x[:, :, :2].round()  # black and white values cannot move outwards
    recipe = brief(architecture=architecture, epochs=2, batch_size=8, fgsm=fgsm, weight_decay=0.1)
    state = Ensemble.create(architecture, (1, 8, 8), K, M, 0).state
    ensemble = Ensemble(architecture, (1, 8, 8), K, {name: value.double() for name, value in state.items()})
    networks = [network.double() for network in members_of(ensemble)]
    batches = recorded(recipe, x, labels, ensemble)
    for m, network in enumerate(networks):
        optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=len(batches))
        for rows in batches:
            batch, y = x[rows[m]], labels[rows[m]]
            if fgsm:
                moved = batch + fgsm * gradient(lambda z, y=y, f=network: F.cross_entropy(f(z), y), batch).sign()
                batch, y = torch.cat([batch, moved.clamp(0, 1)]), torch.cat([y, y])
            optimiser.zero_grad()
            F.cross_entropy(network(batch), y).backward()
            optimiser.step()
            schedule.step()
        for name, value in network.state_dict().items():
            assert torch.allclose(ensemble.state[name][m], value, atol=1e-9), name
            assert not torch.allclose(value, state[name][m].double(), atol=1e-4), name


def test_an_overfitted_ensemble_is_overconfident():
    (x, labels), (held_out, truth) = blobs(40, spread=2.0), blobs(400, seed=1, spread=2.0)
    ensemble = trained(brief(epochs=40), x, labels)
    nll = F.nll_loss(ensemble(held_out), truth)
    fit_temperature(ensemble, held_out, truth)
    assert ensemble.temperature > 1 and F.nll_loss(ensemble(held_out), truth) < nll


@pytest.mark.parametrize("member", range(M))
def test_a_member_that_is_no_number_is_named(member):
    x, labels = blobs(40)
    start = Ensemble.create("mlp", (6,), K, M, 0)

    def inputs(rows, generator):
        batch = x[rows]
        batch[member, 3] = torch.nan
        return batch

    before = {name: value.clone() for name, value in start.state.items()}
    with pytest.raises(VceError, match=f"^member {member} diverged in epoch 1: .*lower `learning_rate`"):
        train_ensemble(start, inputs, labels, brief(), 0)
    assert all(torch.equal(before[name], value) for name, value in start.state.items())
    start.state["1.weight"][member, 0, 0] = torch.nan
    with pytest.raises(VceError, match=f"^member {member} diverged in epoch 1"):
        trained(brief(), x, labels, ensemble=start)


def test_a_rate_that_is_too_high_is_one_line():
    with pytest.raises(VceError, match=r"member \d diverged in epoch \d: .*lower `learning_rate`"):
        trained(brief(learning_rate=1e30), *blobs(40))
