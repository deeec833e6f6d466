"""Necessity and sufficiency of classifiers of one's own under a generator of one's own: what `vce scores` runs."""

import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.classifiers.pretrained import load_classifier
from common.errors import VceError
from common.files import write_atomic
from common.generators.gan import face_gan
from common.generators.vae import VAE, load_vae
from papers.contrastive.edits import edits
from papers.contrastive.labels import AgainstRest, Labels
from papers.contrastive.systems import System, packaged_faces
from papers.contrastive.tables import leakage_table, score_table, validity_table
from papers.contrastive.train import Recipe, frozen_hash, save_shift, train_shift

PROBED = 8  # images that a new generator and its classifiers are tried on
FLOOR = 100  # images that are moved, mirrored, blurred and shifted at random
WORKS = 0.8  # share of edits that reach their label, below which a score says more of S than of f
TOLERATED = 1e-3  # of values beyond [0, 1]


class Decoder(nn.Module):
    """A VAE's decoder as a generator, its latents from the prior N(0, I)."""

    def __init__(self, vae: VAE):
        super().__init__()
        self.vae, self.latent_shape = vae, vae.latent_shape

    def forward(self, z: Tensor) -> Tensor:
        return self.vae.decode(z)


class Fitted(nn.Module):
    """A classifier that sees images resized to its own size, bilinear and antialiased."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        size = tuple(self.classifier.image_shape[1:])
        if tuple(images.shape[2:]) != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return self.classifier(images)


def load_generator(name: str) -> nn.Module:
    """`face-gan`, a VAE FILE.safetensors of this pipeline, or an import path package.module:build of a module that maps
    N×d standard normal latents to N×C×H×W images in [0, 1] and has `latent_shape`. Raises VceError when there is none.
    """
    if name == "face-gan":
        return face_gan()
    if name.endswith(".safetensors"):
        if not Path(name).is_file():
            raise VceError(f"--generator {name}: no such file; check the path")
        return Decoder(load_vae(name))
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # the console script starts without it
    try:
        built = pkgutil.resolve_name(name)
        generator = built if isinstance(built, nn.Module) else built()
        return generator.eval().requires_grad_(False)
    except Exception as error:  # the user's own code may raise anything
        raise VceError(
            f"--generator {name}: {type(error).__name__}: {error}; choose face-gan, a VAE FILE.safetensors, or"
            " package.module:build"
        ) from error


def probe(generator: nn.Module, d: int, name: str) -> Tensor:
    """What a generator makes of a few latents of size d: images N×C×H×W. Raises VceError when it takes none of that
    size, or images are not in [0, 1]."""
    try:
        with torch.no_grad():
            images = generator(torch.randn(PROBED, d, generator=torch.Generator().manual_seed(0)))
    except Exception as error:
        raise VceError(
            f"--generator {name}: takes no latents of size {d}, which its latent_shape says ({error})"
        ) from error
    if not isinstance(images, Tensor) or images.ndim != 4 or len(images) != PROBED or not images.isfinite().all():
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise VceError(
            f"--generator {name}: {PROBED} latents of size {d} give {got}, not finite images {PROBED}×C×H×W; mend it or"
            " its latent_shape"
        )
    low, high = float(images.min()), float(images.max())
    if low < -TOLERATED or high > 1 + TOLERATED:
        raise VceError(
            f"--generator {name}: images reach from {low:.2f} to {high:.2f}, classifiers read [0, 1]; map them there,"
            " such as (x + 1) / 2 after a tanh"
        )
    return images


def latent_size(generator: nn.Module, name: str) -> int:
    """d of a generator with a `latent_shape`. Raises VceError when it has none."""
    shape = getattr(generator, "latent_shape", None)
    if shape is None:
        raise VceError(f"--generator {name}: the size of its latents is unknown; give it latent_shape = (d,)")
    return int(torch.Size((shape,) if isinstance(shape, int) else shape).numel())


def parse_label(text: str) -> tuple[str, str, str]:
    """NAME=CLASSES@CLASSIFIER. Raises VceError for anything else."""
    name, _, rest = text.partition("=")
    classes, _, classifier = rest.partition("@")
    if not (name and classes and classifier):
        raise VceError(
            f"{text!r}: write NAME=CLASS@CLASSIFIER, such as smile=happy@common.classifiers.expression:expression"
        )
    return name, classes, classifier


def chosen_classes(classes: str, names: Sequence[str], text: str) -> tuple[int, ...]:
    """Class numbers of names, numbers and ranges, separated by commas: `happy`, `3`, `30..80`. Raises VceError for a
    class that does not exist, and when none or all are chosen."""
    found: list[int] = []
    for part in classes.split(","):
        first, dots, last = part.partition("..")
        if part in names:
            found.append(list(names).index(part))
        elif first.isdigit() and (last if dots else first).isdigit():
            found += range(int(first), int(last if dots else first) + 1)
        else:
            raise VceError(f"{text!r}: no class {part!r}; choose from {', '.join(list(names)[:12])}, or numbers")
    if not all(0 <= k < len(names) for k in found):
        raise VceError(f"{text!r}: classes go from 0 to {len(names) - 1}")
    if not 0 < len(set(found)) < len(names):
        raise VceError(f"{text!r}: all {len(names)} classes against none is no label; choose some of them")
    return tuple(sorted(set(found)))


def own_system(generator: str, labels: Sequence[str], decisions: Sequence[str]) -> System:
    """The system of a generator and of labels in the form of `parse_label`; without labels the packaged faces.

    Raises VceError when a decision is its own attribute, or a classifier cannot read the generator's images.
    """
    if not labels:
        if decisions or generator != "face-gan":
            raise VceError("--label: name at least one attribute that the shift shall move")
        return packaged_faces()
    if len(labels) + len(decisions) < 2:
        raise VceError(
            "--decision: name what the attribute may decide, or a second --label; one label alone tells nothing"
        )
    G = load_generator(generator)
    d = latent_size(G, generator)
    channels = probe(G, d, generator).shape[1]
    loaded: dict[str, nn.Module] = {}
    seen: dict[tuple[str, tuple[int, ...]], str] = {}

    def network(text: str) -> tuple[str, nn.Module]:
        name, classes, path = parse_label(text)
        classifier = loaded.setdefault(path, load_classifier(path))
        if classifier.image_shape[0] != channels:
            raise VceError(
                f"{text!r}: reads images of {classifier.image_shape[0]} channels, the generator draws {channels}"
            )
        chosen = chosen_classes(classes, classifier.class_names, text)
        if (path, chosen) in seen:
            raise VceError(
                f"{text!r}: is {seen[path, chosen]!r} again, and nothing tells of itself; choose another label"
            )
        seen[path, chosen] = name
        return name, AgainstRest(Fitted(classifier), chosen)

    asked, decided = ([network(text) for text in texts] for texts in (labels, decisions))
    # as they are: a mirror or a move may well change a label of somebody else
    parts = (Labels(tuple(name for name, _ in part), tuple(net for _, net in part), ()) for part in (asked, decided))
    return System(generator, G, d, *parts, mutual=True)


def scores(
    system: System, recipe: Recipe, n: int, seed: int, out: Path, advance: Callable[[], None]
) -> dict[str, pd.DataFrame]:
    """Train S, edit n latents, and write `shift.safetensors`, `scores.csv`, `validity.csv` and `leakage.csv` to `out`;
    return the tables. `advance` is called once per step of training, per label and once more.

    Raises VceError when a label never occurs, when generator or classifiers changed, or when training diverges.
    """
    before = frozen_hash(system)
    S = train_shift(system, recipe, seed, lambda facts: advance())
    found = edits(system, S, n, min(n, FLOOR), seed, advance).table
    if frozen_hash(system) != before:
        raise VceError("generator or classifiers changed while the shift was trained; freeze them")
    tables = {"scores": score_table(found), "validity": validity_table(found), "leakage": leakage_table(found)}
    facts = {"recipe": vars(recipe), "seed": seed, "labels": system.asked.names, "frozen": {"before": before}}
    save_shift(S, out / "shift.safetensors", facts)
    for name, table in tables.items():
        write_atomic(out / f"{name}.csv", table.to_csv(index=False, float_format="%.4f"))
    return tables


def summary(tables: dict[str, pd.DataFrame]) -> str:
    """The headline: NEC and SUF with their intervals, what a random shift as long gives, and validity, as text."""
    scores, validity = tables["scores"], tables["validity"]
    here = scores[(scores["protocol"] == "itt") & (scores["context"] == "")]
    lines = []
    for (attribute, decision), cell in here[here["regime"] == "clamp_others"].groupby(["attribute", "decision"]):
        reached = validity[(validity["attribute"] == attribute) & (validity["regime"] == "clamp_others")]
        line = f"{attribute} for {decision}:"
        for score in ("nec", "suf"):
            row = cell[cell["score"] == score].iloc[0]
            same = (here["attribute"] == attribute) & (here["decision"] == decision) & (here["score"] == score)
            floor = here[same & (here["regime"] == "random")]["value"]
            shown = row["reason"] or f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}], n = {row['n']}"
            beside = f", random shift {floor.iloc[0]:.2f}" if len(floor) and floor.notna().all() else ""
            line += f"  {score.upper()} {shown}{beside if not row['reason'] else ''}"
        low, high = reached["reached"].min(), reached["reached"].max()
        hint = "; many edits fail, so the scores are too low: give more --steps" if low < WORKS else ""
        lines.append(f"{line}  (edits reach the label in {low:.2f} to {high:.2f}{hint})")
    return "\n".join(lines)
