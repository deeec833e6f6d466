"""Systems: their names, what each space composes, the temperature, and the file."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import papers.clarity.systems as module
from common.data import datasets
from common.errors import VceError
from common.generators.vae import VAE
from common.tensors import read_tensors, write_tensors
from papers.clarity.names import SPACES, cell_of, parse, system_names
from papers.clarity.systems import System, Systems, calibrated, load_shipped, load_systems, save_systems

spaces = st.sampled_from(list(SPACES))
COMPOSED = ("p", "pr", "pr-sample", "l-mean", "l-sample")
SYSTEMS = [(space, name) for space in COMPOSED for name in (f"{space}-m3", f"{space}.1")]


# names


@given(st.lists(spaces, unique=True), st.sets(st.integers(1, 30)), st.integers(1, 9), st.sampled_from(["", "-log"]))
def test_names_say_what_they_are_made_of(chosen, sizes, singles, suffix):
    names = system_names(chosen, sorted(sizes), singles, suffix)
    assert len(set(names)) == len(names) == len(chosen) * (len(sizes - {1}) + singles * (1 in sizes))
    expected = []
    for space in chosen:
        for m in sorted(sizes):
            if m == 1:
                expected += [(space, [k], "mixture") for k in range(singles)]
            else:
                expected.append((space, list(range(m)), "mean-log" if suffix else "mixture"))
    assert [parse(name) for name in names] == expected


@given(spaces, st.integers(2, 30), st.integers(0, 9), st.sampled_from(["", "mnist-d8:", "mnist-beta-half:", "a-m5:"]))
def test_single_members_make_the_cell_of_size_one(space, m, k, variant):
    assert cell_of(f"{variant}{space}-m{m}") == (f"{variant}{space}", m)
    assert cell_of(f"{variant}{space}-m{m}-log") == (f"{variant}{space}-log", m)
    assert cell_of(f"{variant}{space}.{k}") == (f"{variant}{space}", 1)


def test_systems_of_a_space_by_size(systems):
    assert systems.names("l-sample", [1]) == ["l-sample.0", "l-sample.1", "l-sample.2"]
    assert systems.names("l-sample", [2, 3]) == ["l-sample-m2", "l-sample-m3"]  # the mean-log one is not among them
    assert systems.names("l-mean", [5]) == [] and systems.names("p", [1, 3])[-1] == "p-m3"


# what a system composes


def by_hand(systems, space, name, images):
    """Log-probabilities of one space written out, with its members one by one."""
    ensemble, temperature, vae = systems.ensembles[space], systems.temperatures[name], systems.vae
    z = vae.encode(images)[0]
    seen = images if space == "p" else z if space.startswith("l-") else vae.decode(z)
    members = [1] if "." in name else [0, 1, 2]
    p = [(ensemble.only([m]).logits(seen)[0] / temperature).softmax(1) for m in members]
    return torch.stack(p).mean(0).log()


@pytest.mark.parametrize(("space", "name"), SYSTEMS)
def test_a_system_is_its_parts(systems, digits, space, name):
    system, x = systems.system(name), digits.images
    assert torch.allclose(system(x), by_hand(systems, space, name, x), atol=1e-4)
    z = systems.vae.encode(x)[0] + 0.3
    through = z if space.startswith("l-") else systems.vae.decode(z)
    assert torch.allclose(system.log_probabilities(z), system.ensemble(through), atol=1e-6)
    assert system.reads_latents == space.startswith("l-")
    assert torch.allclose(system.ensemble(system.inputs(x)), system(x), atol=1e-5)
    assert torch.allclose(system(x).exp().sum(1), torch.ones(16), atol=1e-5)
    assert (system.image_shape, system.class_names) == ((1, 28, 28), datasets.DIGITS) and not system.training


def test_the_mean_log_system_is_the_normalised_geometric_mean(systems, digits):
    system = systems.system("l-sample-m3-log")
    members = system.ensemble.member_log_probabilities(system.inputs(digits.images))
    assert torch.allclose(system(digits.images), members.mean(0).log_softmax(1), atol=1e-6)
    assert system.ensemble.temperature.item() == pytest.approx(1.3)
    assert not torch.allclose(system(digits.images), systems.system("l-sample-m3")(digits.images), atol=1e-2)


def test_an_unknown_system_is_one_line(systems):
    with pytest.raises(VceError, match=r"system 'l-sample-m7' is unknown; choose one of p\.0, p\.1, ") as caught:
        systems.system("l-sample-m7")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["p.2", "pr-m3", "l-mean-m3", "l-sample-m3", "l-sample-m3-log"])
def test_the_temperature_is_that_of_least_nll(systems, digits, name):
    held_out = replace(digits, labels=(digits.labels + (torch.arange(16) < 5)) % 10)  # some are wrong
    found = calibrated(systems.ensembles, "mnist", systems.vae, [name], held_out)
    assert list(found) == [name]
    space, members, combination = parse(name)
    ensemble = systems.ensembles[space].only(members, combination=combination)

    def nll(temperature):
        ensemble.temperature.fill_(temperature)
        system = System(name, space, "mnist", systems.vae, ensemble)
        return F.nll_loss(system(held_out.images), held_out.labels).item()

    assert 0.06 < found[name] < 19  # inside of the grid
    fine = np.exp(np.linspace(-3, 3, 301))
    assert nll(found[name]) <= min(map(nll, fine)) + 1e-3
    assert nll(found[name]) < min(nll(found[name] / 1.2), nll(found[name] * 1.2))


def test_calibration_leaves_the_members_alone(systems, digits):
    before = {space: ensemble.temperature.clone() for space, ensemble in systems.ensembles.items()}
    calibrated(systems.ensembles, "mnist", systems.vae, ["p.0", "l-mean-m2"], digits)
    assert all(torch.equal(systems.ensembles[space].temperature, value) for space, value in before.items())


# the file


@pytest.fixture
def path(systems, tmp_path):
    save_systems(systems, tmp_path / "s.safetensors", {"copies": 6})
    return tmp_path / "s.safetensors"


def test_round_trip_gives_the_same_bits(systems, digits, path):
    back = load_systems(path)
    assert (back.world, back.seed, back.temperatures) == ("mnist", 0, systems.temperatures)
    assert torch.equal(back.class_means, systems.class_means) and list(back.ensembles) == sorted(systems.ensembles)
    for name in systems.temperatures:
        assert torch.equal(back.system(name)(digits.images), systems.system(name)(digits.images)), name
    assert not any(parameter.requires_grad for parameter in back.vae.parameters()) and not back.vae.training
    save_systems(back, path.with_name("again"), {"copies": 6})
    assert path.with_name("again").read_bytes() == path.read_bytes()


def rewritten(path, kind="systems", lose="nothing", **changes):
    header, tensors = read_tensors(path, "systems")
    kept = {key: value for key, value in tensors.items() if not key.startswith(lose)}
    write_tensors(path, kind, kept, {key: value for key, value in (header | changes).items() if value is not None})


@pytest.mark.parametrize(
    "damage",
    [
        "truncated",
        "html",
        "missing",
        "another kind",
        "no VAE",
        "no weights",
        "no members",
        "no table",
        "no means",
        "no world",
        "another latent",
        "another architecture",
    ],
)
def test_damaged_files_are_one_line(path, damage):
    whole, header = path.read_bytes(), read_tensors(path, "systems")[0]
    ensembles = header["ensembles"]
    if damage == "missing":
        path.unlink()
    elif damage in ("truncated", "html"):
        path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"<html>404</html>")
    elif damage == "another kind":
        rewritten(path, kind="VAE")
    elif damage == "another latent":
        rewritten(path, vae={**header["vae"], "latent": 5})
    elif damage == "another architecture":
        rewritten(path, ensembles={**ensembles, "p": {**ensembles["p"], "architecture": "pixel_cnn"}})
    elif damage == "no table":
        rewritten(path, ensembles=list(ensembles))
    elif damage == "no world":
        rewritten(path, world=None)
    else:
        lost = {"no VAE": "vae|", "no weights": "p|3.", "no members": "p|", "no means": "class_means"}
        rewritten(path, lose=lost[damage])
    with pytest.raises(VceError) as caught:
        load_systems(path)
    said = str(caught.value)
    fix = "give the file of a" if damage in ("foreign", "another kind") else "delete it"
    assert said.startswith(f"{path}: not a systems file (") and fix in said and "\n" not in said


def test_a_vae_of_other_images_is_refused(systems, path):
    header = read_tensors(path, "systems")[0]
    small = VAE("mlp", (1, 8, 8), 4, (6,))
    other = replace(systems, vae=small)
    save_systems(other, path, {})
    with pytest.raises(VceError) as caught:
        load_systems(path)
    assert str(caught.value) == (
        f"{path}: its VAE decodes (1, 8, 8) images, those of mnist are (1, 28, 28); train it anew"
    )
    rewritten(path, world="scenes", vae=header["vae"] | {"image_shape": (1, 8, 8), "widths": (6,)})
    with pytest.raises(VceError, match=r"those of scenes are \(3, 32, 32\)"):
        load_systems(path)


def test_an_unknown_world_is_one_line(path):
    rewritten(path, world="mnits")
    with pytest.raises(VceError, match="world 'mnits' is unknown; choose one of"):
        load_systems(path)


# what `vce explain` explains


def test_the_shipped_system_is_the_largest_of_clarity(path):
    system = load_shipped(str(path))
    assert system.name == "clarity/mnist l-sample-m3" and system.space == "l-sample"


def only(systems: Systems, names) -> Systems:
    return replace(systems, temperatures=dict.fromkeys(names, 1.0))


def test_ten_members_are_enough_and_a_single_one_will_do(systems, path, tmp_path):
    many = systems.ensembles["l-sample"].only([k % 3 for k in range(12)])
    grown = replace(systems, ensembles={"l-sample": many})
    for names, chosen in (
        (["l-sample.0", "l-sample-m10", "l-sample-m12", "l-sample-m10-log"], "l-sample-m10"),
        (["l-sample.0", "l-sample.1"], "l-sample.0"),
        (["l-sample-m12", "l-sample-m12-log"], "l-sample-m12"),
    ):
        save_systems(only(grown, names), path, {})
        assert load_shipped(str(path)).name == f"clarity/mnist {chosen}"


def test_a_file_without_clarity_is_refused(systems, path):
    save_systems(only(systems, ["p-m3", "l-mean-m3", "l-sample-m3-log"]), path, {})
    with pytest.raises(VceError) as caught:
        load_shipped(str(path))
    assert str(caught.value) == f"{path}: holds no l-sample ensemble, which Clarity explains; train it anew"


def test_the_best_scale_is_shipped(systems, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    with pytest.raises(VceError) as caught:
        load_shipped("clarity/mnist")
    assert str(caught.value) == (
        "clarity/mnist: not trained yet; run `snakemake work/cpu/clarity/systems/mnist-0.safetensors`, a few minutes,"
        " first"
    )
    for scale, seed in (("smoke", 5), ("cpu", 7)):
        save_systems(replace(systems, seed=seed), tmp_path / f"work/{scale}/clarity/systems/mnist-0.safetensors", {})
        system, expected = load_shipped("clarity/mnist"), systems.system("l-sample-m3")
        assert system.name == "clarity/mnist l-sample-m3"
        x = torch.rand(2, 1, 28, 28)
        assert torch.equal(system(x), expected(x))


@pytest.mark.parametrize("name", ["imagenet/efficientnet-lite0", "clarity/toy", "mnist", ""])
def test_another_classifier_is_refused(name):
    with pytest.raises(VceError) as caught:
        load_shipped(name)
    said = str(caught.value)
    assert said.startswith(f"--classifier {name}: clarity explains its own latent classifier, no other; choose clarity")
    assert "clarity/mnist or clarity/scenes, or a systems file" in said and "\n" not in said


def test_a_shipped_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(VceError, match="not a systems file"):
        load_shipped(str(tmp_path / "gone.safetensors"))
