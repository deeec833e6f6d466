"""Edits of generated images, and what classifiers say before and after each (contrastive spec §2.5, §2.7 E1)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from common.errors import VceError
from common.explain import Streams
from common.metrics.perturbation import gini, hoyer, lp_norm, pixel_share
from papers.contrastive import baselines
from papers.contrastive.labels import Labels, transformed
from papers.contrastive.method import ShiftPredictor, condition
from papers.contrastive.systems import POPULATION, System

CHUNK = 64  # images of a pass
NUISANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "move": lambda images: transformed(images, 2, 0, False),
    "mirror": lambda images: transformed(images, 0, 0, True),
    "blur": lambda images: torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, 0.8, 0.8))),
}


@dataclass(frozen=True)
class Seen:
    """Labels N×K of N images, 0 or 1, their probabilities, and where somebody knows them the auditor's labels N×m and
    nuisances N×4."""

    labels: Tensor
    probability: Tensor
    audited: Tensor | None
    nuisances: Tensor | None

    def __getitem__(self, rows: slice) -> "Seen":
        return Seen(**{name: None if value is None else value[rows] for name, value in vars(self).items()})


@torch.no_grad()
def look(images: Tensor, system: System) -> Seen:
    """What all classifiers say of N images, by logits averaged over transforms."""

    def logits(labels: Labels) -> Tensor:
        return torch.cat([labels.averaged(part) for part in images.split(CHUNK)])

    seen = logits(system.labels)
    audited = (logits(system.auditor) > 0).long() if system.auditor else None
    return Seen((seen > 0).long(), seen.sigmoid(), audited, system.nuisances(images) if system.nuisances else None)


@torch.no_grad()
def generated(w: Tensor, system: System) -> Tensor:
    """The images of N latents."""
    return torch.cat([system.G(part) for part in w.split(CHUNK)])


def labelled(w: Tensor, system: System) -> Tensor:
    """N×K labels, 0 or 1, of the images of N latents."""
    return look(generated(w, system), system).labels


def flipping_shifts(w: Tensor, present: Tensor, S: ShiftPredictor, k: int) -> Tensor:
    """N×d shifts that ask for the opposite of label k, and for the other labels of S as they are in N×K `present`."""
    return S(w, condition(present[:, : S.m], k, 1 - present[:, k], "clamp_others"))


def random_shifts(shifts: Tensor, directions: Tensor) -> Tensor:
    """Along N×d `directions`, each as long as the shift in its place."""
    return directions * (shifts.norm(dim=1) / directions.norm(dim=1))[:, None]


def conditions(present: Tensor, k: int, system: System) -> Iterator[tuple[str, str, Tensor]]:
    """Regime, decision and condition of every edit of label k, for N×m present labels. The decision is never asked for:
    one that S steers has a condition of its own, the others share one."""
    opposite = 1 - present[:, k]
    yield "free", "", condition(present, k, opposite, "free")
    held = condition(present, k, opposite, "clamp_others")
    yield "clamp_others", "", held
    for t in range(system.m):
        if system.mutual and t != k:
            c = held.clone()
            c[:, t] = 0
            yield "clamp_others", system.asked.names[t], c
    children = system.descendants.get(system.asked.names[k])
    if children:
        yield "clamp_nondesc", "", condition(present, k, opposite, "clamp_nondesc", children)


class Edits:
    """Collects the rows of edits of n latents; equal shifts are looked at once."""

    def __init__(self, w: Tensor, ids: tuple[str, ...], system: System, seed: int, floor: int):
        self.w, self.ids, self.system, self.seed, self.floor = w, ids, system, seed, floor
        self.images = generated(w, system)
        self.before, self.looked = look(self.images, system), len(w)
        self.frames: list[pd.DataFrame] = []

    def add(self, regime: str, k: int, decision: str, shift: Tensor | None, after: Tensor, seen: Seen) -> None:
        """Rows of one regime and decision; `after`: the edited images of the first latents, `seen`: what is said."""
        n, names, m = len(after), self.system.labels.names, self.system.m
        before, change = self.before[slice(0, n)], after - self.images[:n]
        x = before.labels[:, k]
        confidence = (seen.probability[:, k] - x).abs()
        forward, backward = baselines.PASSES.get(regime, (0, 0))
        length = torch.zeros(n) if shift is None else shift.norm(dim=1)
        columns = {
            "x": x, "reached": (seen.labels[:, k] != x).long(), "confidence": confidence,
            "length": length, "distance": change.abs().flatten(1).mean(1),
            "l1": lp_norm(change, 1), "l1.5": lp_norm(change, 1.5), "l2": lp_norm(change, 2), "hoyer": hoyer(change),
            "gini": gini(change), "pixel_share": pixel_share(change),
        }  # fmt: skip
        columns |= {f"before_{name}": before.labels[:, j] for j, name in enumerate(names)}
        columns |= {f"after_{name}": seen.labels[:, j] for j, name in enumerate(names)}
        if seen.audited is not None:
            others = [j for j in range(m) if j != k]
            columns["audited"] = (seen.audited[:, k] != x).long()
            columns["leaked"] = (seen.audited != before.audited).float()[:, others].mean(1)
            columns |= {f"audit_before_{names[j]}": before.audited[:, j] for j in range(m)}
            columns |= {f"audit_after_{names[j]}": seen.audited[:, j] for j in range(m)}
        if seen.nuisances is not None:
            columns["drift"] = (seen.nuisances - before.nuisances).abs().mean(1)
        facts = {"system": self.system.name, "regime": regime, "attribute": names[k], "decision": decision}
        frame = pd.DataFrame({"image": self.ids[:n], **{name: values.numpy() for name, values in columns.items()}})
        frame["floor"] = (frame.index < self.floor).astype(int)
        self.frames.append(frame.assign(**facts, seed=self.seed, forward=forward, backward=backward))

    def shifted(self, k: int, shift: Tensor, users: dict[str, list[str]]) -> None:
        """Rows of an edit that moves the first of the latents, for the regimes that it serves and their decisions."""
        after = generated(self.w[: len(shift)] + shift, self.system)
        seen = look(after, self.system)
        self.looked += len(after)
        for regime, decisions in users.items():
            for decision in decisions:
                self.add(regime, k, decision, shift, after, seen)

    @property
    def table(self) -> pd.DataFrame:
        return pd.concat(self.frames, ignore_index=True)


def edits(
    system: System,
    S: ShiftPredictor,
    n: int,
    floor: int,
    seed: int,
    advance: Callable[[], None],
    nuisances: bool = True,
) -> Edits:
    """Every edit of every label that S steers, of n latents, the first `floor` of them also about random shifts and
    `nuisances`. `advance` is called once per label and once after them.

    Raises VceError when a label never occurs or always does: there is nobody to compare with.
    """
    ids, w = system.population(n)
    found = Edits(w, ids, system, seed, floor)
    present = found.before.labels[:, : system.m]
    require_both(found.before.labels, system)
    few = slice(0, floor)
    stay = S(w[few], 2.0 * present[few] - 1)
    for k in range(system.m):
        grouped: list[tuple[Tensor, dict[str, list[str]]]] = []
        for regime, decision, c in conditions(present, k, system):
            same = next((users for other, users in grouped if torch.equal(other, c)), None)
            if same is None:
                grouped.append((c, same := {}))
            same.setdefault(regime, []).append(decision)
        for c, users in grouped:
            shift = S(w, c)
            found.shifted(k, shift, users)
            if "" in users.get("clamp_others", ()):
                directions = Streams(POPULATION, ids, (k,) * len(ids)).normal((system.d,), "random shift")
                found.shifted(k, random_shifts(shift, directions)[few], {"random": [""]})
        advance()
    unasked = {name: (None, NUISANCES[name](found.images[few])) for name in (NUISANCES if nuisances else ())}
    unasked["stay"] = stay, generated(w[few] + stay, system)
    for name, (shift, after) in unasked.items():
        seen = look(after, system)
        found.looked += len(after)
        for k in range(system.m):
            found.add(name, k, "", shift, after, seen)
    advance()
    return found


def compare(found: Edits, seed: int) -> None:
    """Adds the edits of all baselines, for the latents that every regime is asked about."""
    w, present = found.w[: found.floor], found.before.labels[: found.floor, : found.system.m]
    generator = torch.Generator().manual_seed(seed)
    for name, by_label in baselines.moves(w, present, found.system, generator).items():
        for k, shift in by_label.items():
            found.shifted(k, shift, {name: [""]})


def require_both(labels: Tensor, system: System) -> None:
    """Raise VceError naming a label that never occurs among N×K `labels`, or always does."""
    shares = labels.float().mean(0)
    for name, share in zip(system.labels.names, shares.tolist(), strict=True):
        if share in (0.0, 1.0):
            seen = "never occurs" if share == 0 else "always occurs"
            raise VceError(
                f"label {name!r} {seen} among {len(labels)} images of {system.name}: there is nobody to compare with;"
                " draw more latents, or name another label"
            )
