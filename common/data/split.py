"""Job: draw the split tables of all worlds, before anything is trained.

python -m common.data.split --sizes '{"scenes": {"systems": 2200, ...}, ...}' --seed 0 --out DIR
"""

import argparse
import json
from pathlib import Path

from common.data.datasets import draw_splits
from common.errors import one_line_errors
from common.files import atomic_path


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=json.loads, required=True, help="JSON: images per split, per world")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="folder of WORLD.parquet")
    args = parser.parse_args()
    for world, sizes in args.sizes.items():
        with atomic_path(args.out / f"{world}.parquet") as temporary:
            draw_splits(world, sizes, args.seed, args.data).to_parquet(temporary, index=False)


if __name__ == "__main__":
    main()
