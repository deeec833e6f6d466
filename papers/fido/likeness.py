"""Job: how alike the maps of all training seeds are, as Spearman's ρ of their pixels.

python -m papers.fido.likeness --shards F... --out F
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from common.batches import Shard, read_shards
from common.errors import one_line_errors
from common.files import atomic_path
from papers.fido.metrics import spearman_across
from papers.fido.names import OBJECTIVES, cell_name, parse_name

EXPLAINED, OTHER = "cnn", "residual"  # of two architectures


def likeness(shards: list[Shard]) -> pd.DataFrame:
    """One row per image, searched map and kind: maps of one image from other `draws` of the masks; of the same kind of
    classifier trained with other `seeds`, all pairs of them; of two `architectures`; and of different `images`, the
    floor. The images are the first, as many as every shard of the world explains."""
    lines = []
    for shard in shards:
        parsed = {name: parse_name(name) for name in shard.batches}
        for method, fill in sorted(
            {(method, fill) for method, fill, replaced in parsed.values() if "draw" in replaced}
        ):
            base = cell_name(method, fill)
            drawn = [
                name
                for name, (*cell, replaced) in parsed.items()
                if cell == [method, fill] and set(replaced) <= {"draw"}
            ]
            maps = [shard.batches[name].saliency for name in drawn]
            lines += [
                lines_of(shard, base, "draws", maps),
                lines_of(shard, base, "images", [maps[0], maps[0].roll(1, 0)]),
            ]
    pairs = [shard for shard in shards if shard.starts == "pairs"]
    for one, two in itertools.combinations(pairs, 2):
        if one.world != two.world:
            continue
        same = {one.classifier, two.classifier} == {EXPLAINED} and one.seed != two.seed
        other = {one.classifier, two.classifier} == {EXPLAINED, OTHER} and one.seed == two.seed
        n = min(len(shard.ids) for shard in pairs if shard.world == one.world)
        for name in one.batches:
            if (same or other) and name in two.batches and parse_name(name)[0] in OBJECTIVES:
                maps = [part.batches[name].saliency[:n] for part in (one, two)]
                lines.append(lines_of(one, name, "seeds" if same else "architectures", maps))
    found = pd.concat(lines, ignore_index=True)
    # a pair of training seeds is one look at the same image
    found["seed"] = found["seed"].where(found["kind"] != "seeds", found["seed"].min())
    keys = ["world", "method", "kind", "seed", "image"]
    return found.groupby(keys, as_index=False)["correlation"].mean().assign(strength=0.0, classifier=EXPLAINED)


def lines_of(shard: Shard, method: str, kind: str, maps: list[Tensor]) -> pd.DataFrame:
    """The likeness of some maps of the images that all of them explain."""
    n = min(map(len, maps))
    facts = {"world": shard.world, "method": method, "kind": kind, "seed": shard.seed}
    rho = spearman_across([saliency[:n] for saliency in maps]).numpy()
    return pd.DataFrame({"image": np.array(shard.ids[:n], dtype=object), "correlation": rho}).assign(**facts)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", required=True, help="those of all training seeds")
    parser.add_argument("--out", type=Path, required=True, help="the table")
    args = parser.parse_args()
    shards = [shard for path in args.shards for shard in read_shards(path)]
    with atomic_path(args.out) as temporary:
        likeness(shards).to_parquet(temporary, index=False)


if __name__ == "__main__":
    main()
