"""The oracle panel: independent judges of a counterfactual (MEASUREMENT: data splits, oracles, gates).

Three nets and machines trained on images that no explained system saw, and on rendered worlds the twin reader, which
knows the right answer. They are never used for tuning or stopping.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common.classifiers.checkpoints import load_checkpoint


@dataclass(frozen=True)
class Panel:
    """Trained judges by name; `twins` N×K×C×H×W on rendered worlds, else None."""

    judges: dict[str, nn.Module]

    @classmethod
    def load(cls, paths: dict[str, Path]) -> "Panel":
        return cls({name: load_checkpoint(path) for name, path in paths.items()})

    def only(self, names: set[str]) -> "Panel":
        """The judges that passed their gate."""
        return Panel({name: judge for name, judge in self.judges.items() if name in names})

    def predictions(self, images: Tensor, twins: Tensor | None, batch_size: int = 256) -> dict[str, Tensor]:
        """Class index N per judge for N×C×H×W images; the twin reader takes part where `twins` N×K×C×H×W is given."""
        with torch.no_grad():
            votes = {
                name: torch.cat([judge(x).argmax(1) for x in images.split(batch_size)])
                for name, judge in self.judges.items()
            }
        if twins is not None:
            votes["twin"] = read_twins(images, twins)
        return votes


def read_twins(images: Tensor, twins: Tensor) -> Tensor:
    """The class whose exact rendering lies nearest (l2) to each image: N class indices."""
    return (images[:, None] - twins).flatten(2).norm(dim=2).argmin(1)


def majority(votes: dict[str, Tensor], target: Tensor) -> Tensor:
    """Oracle-valid: more than half of the panel sees `target` (N booleans)."""
    return torch.stack([vote == target for vote in votes.values()]).float().mean(0) > 0.5
