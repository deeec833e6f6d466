"""Job: draw the split table of a world, before anything is trained.

python -m common.data.split --world scenes --sizes '{"systems": 2200, ...}' --seed 0 --out F
"""

import argparse
import json
from pathlib import Path

from common.data.datasets import draw_splits
from common.errors import one_line_errors
from common.files import atomic_path


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", required=True)
    parser.add_argument("--sizes", type=json.loads, required=True, help="JSON: images per split")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with atomic_path(args.out) as temporary:
        draw_splits(args.world, args.sizes, args.seed, args.data).to_parquet(temporary, index=False)


if __name__ == "__main__":
    main()
