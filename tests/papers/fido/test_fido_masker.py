"""The amortised masker on a classifier that looks at one quadrant per class; its files."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from common.errors import VceError
from common.generators.infill import Blur
from common.tensors import read_tensors, write_tensors
from papers.fido.masker import Masker, Recipe, load_masker, save_masker, train_masker

SIZE, HALF, N = 16, 8, 96
RECIPE = Recipe(epochs=32, widths=(8, 12), batch_size=16, variation=1.0, area=4.0, destroy=2.0)
PLACES = (
    (slice(HALF), slice(HALF)),
    (slice(HALF, SIZE), slice(HALF, SIZE)),
)  # of class 0 and class 1
BOARD = 2.0 * ((torch.arange(SIZE).view(-1, 1) + torch.arange(SIZE)) % 2) - 1


class Quadrants(nn.Module):
    """Class k is how much of a checkerboard there is in its quadrant: no colour and no blur has any."""

    def forward(self, images):
        seen = (images * BOARD).mean(1)
        return 30 * torch.stack([seen[:, rows, columns].mean((1, 2)) for rows, columns in PLACES], 1)


def boards(n=N, seed=0):
    """Checkerboards all over, in noise, of any label: the label alone says which quadrant counts."""
    noise = 0.1 * torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return (0.45 + 0.3 * BOARD + noise).clamp(0, 1), torch.arange(n) % 2


def objective(masker, images, labels, recipe=RECIPE):
    """The loss of the docstring over the blurred ground."""
    m = masker(images, labels)
    ground = Blur(recipe.sigma)(images, images.new_zeros(len(images), 1, 1, 1), None)[:, 0]

    def p(keep):
        mixed = keep[:, None] * images + (1 - keep[:, None]) * ground
        return Quadrants()(mixed).softmax(1)[torch.arange(len(images)), labels]

    variation = (m[:, 1:] - m[:, :-1]).abs().mean() + (m[:, :, 1:] - m[:, :, :-1]).abs().mean()
    kept, left = p(m).log().mean(), (p(1 - m) ** recipe.power).mean()
    return (recipe.variation * variation + recipe.area * m.mean() - kept + recipe.destroy * left).item()


def inside(maps, place):
    """The share of each map's mass that lies in a place."""
    return maps[:, *place].sum((1, 2)) / maps.sum((1, 2))


@pytest.fixture(scope="module")
def trained():
    seen = []
    masker = train_masker(Quadrants(), *boards(), RECIPE, 0, seen.append)
    assert [fact["epoch"] for fact in seen] == list(range(1, RECIPE.epochs + 1))
    return masker


def test_training_reduces_the_loss(trained):
    fresh = boards(32, 1)
    untrained = train_masker(Quadrants(), *boards(), replace(RECIPE, epochs=1, learning_rate=0.0), 0)
    middle = train_masker(Quadrants(), *boards(), replace(RECIPE, epochs=4), 0)
    start, between, end = (objective(masker, *fresh) for masker in (untrained, middle, trained))
    assert end < between < start and end < start - 1


def test_maps_lie_where_the_classifier_looks_for_the_class(trained):
    """The same images for either class: only the label moves the map."""
    images, _ = boards(32, 1)
    for label, place in enumerate(PLACES):
        maps = trained(images, torch.full((32,), label))
        assert maps.shape == (32, SIZE, SIZE) and maps.min() >= 0 and maps.max() <= 1
        assert (inside(maps, place) > 0.8).all()
        assert (maps[:, *PLACES[1 - label]].mean((1, 2)) < 0.1).all()
        assert maps.mean() < 0.3


def test_a_larger_weight_of_the_area_makes_smaller_maps(trained):
    images, labels = boards(32, 1)
    small = train_masker(Quadrants(), *boards(), replace(RECIPE, area=16.0), 0)(images, labels)
    assert small.mean() < 0.8 * trained(images, labels).mean()


def test_the_map_of_a_class_is_taken_for_each_image(trained):
    images, labels = boards(8, 2)
    mixed = trained(images, labels)
    for label in (0, 1):
        alone = trained(images, torch.full((8,), label))
        assert torch.allclose(mixed[labels == label], alone[labels == label], atol=1e-6)
    both = trained.decode(trained.features(images, torch.ones(8, SIZE, SIZE)))
    assert both.shape == (8, 2, SIZE, SIZE)
    for n in range(8):
        assert torch.equal(mixed[n], both[n, labels[n]])


def test_a_map_does_not_depend_on_the_batch(trained):
    images, labels = boards(8, 2)
    assert torch.allclose(trained(images[3:5], labels[3:5]), trained(images, labels)[3:5], atol=1e-6)


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_one_alone():
    brief = replace(RECIPE, epochs=2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = train_masker(Quadrants(), *boards(), brief, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = (train_masker(Quadrants(), *boards(), brief, seed) for seed in (3, 4))
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert any(not torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items())


def test_a_masker_comes_back_from_its_file(trained, tmp_path):
    path = tmp_path / "masker.safetensors"
    save_masker(trained, path, {"seed": 7})
    loaded, (images, labels) = load_masker(path), boards(8, 2)
    assert torch.equal(loaded(images, labels), trained(images, labels))
    assert (loaded.image_shape, loaded.widths, loaded.n_classes) == ((3, SIZE, SIZE), (8, 12), 2)
    assert not loaded.training and not any(value.requires_grad for value in loaded.parameters())
    assert not trained.training and not any(value.requires_grad for value in trained.parameters())
    assert read_tensors(path, "masker")[0]["facts"] == {"seed": 7}


HEADER = {"image_shape": [3, SIZE, SIZE], "widths": [8, 12], "n_classes": 2, "facts": {}}


@pytest.mark.parametrize(
    "changed",
    [
        {"n_classes": 3},
        {"n_classes": "two"},
        {"n_classes": -1},
        {"widths": [8, 16]},
        {"widths": []},
        {"widths": 8},
        {"image_shape": [3, SIZE]},
        {"image_shape": None},
    ],
)
def test_a_header_that_does_not_fit_the_tensors_names_the_file(trained, tmp_path, changed):
    path = tmp_path / "strange.safetensors"
    write_tensors(path, "masker", trained.state_dict(), {**HEADER, **changed})
    complaint(path)
    write_tensors(path, "masker", trained.state_dict(), {key: HEADER[key] for key in HEADER if key not in changed})
    complaint(path)


def test_damaged_and_foreign_files_are_named(trained, tmp_path):
    path = tmp_path / "masker.safetensors"
    save_masker(trained, path, {})
    path.write_bytes(path.read_bytes()[:-100])
    complaint(path)
    path.write_bytes(b"no tensors at all")
    complaint(path)
    write_tensors(path, "classifier", trained.state_dict(), HEADER)
    assert "classifier" in complaint(path)
    write_tensors(path, "masker", {"head.0.weight": torch.zeros(3)}, HEADER)
    complaint(path)
    complaint(tmp_path / "absent.safetensors")


def complaint(path):
    """The one line that names the file."""
    with pytest.raises(VceError) as error:
        load_masker(path)
    said = str(error.value)
    assert said.startswith(str(path)) and "masker" in said and len(said.splitlines()) == 1
    return said


def test_a_loss_that_is_no_number_is_an_error():
    class Broken(Quadrants):
        def forward(self, images):
            return super().forward(images) / images.new_zeros(())

    with pytest.raises(VceError, match=r"the loss is not finite in epoch 1; lower `learning_rate`"):
        train_masker(Broken(), *boards(), replace(RECIPE, epochs=2), 0)
    for batch_size in (16, N):  # of one step alone, the loss is that of the first weights
        with pytest.raises(VceError, match="not finite in epoch 1"):
            recipe = replace(RECIPE, epochs=1, batch_size=batch_size, learning_rate=1e300)
            train_masker(Quadrants(), *boards(), recipe, 0)


def test_images_of_another_shape_are_refused(trained):
    with pytest.raises(VceError, match=r"\(3, 20, 20\)"):
        trained(torch.rand(1, 3, 20, 20), torch.tensor([0]))
    with pytest.raises(VceError, match="even"):
        Masker((3, 15, 16), (4,), 2)
