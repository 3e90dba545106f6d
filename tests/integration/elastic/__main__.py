"""`python -m tests.integration.elastic [--short] [--seed N] [--directory D]`: the story, as it happens."""

from __future__ import annotations

import argparse
import random
import tempfile
from functools import partial
from pathlib import Path

from tests.integration.elastic.story import Story


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.integration.elastic", description=__doc__)
    parser.add_argument("--short", action="store_true", help="3 stores become 4, then 3 others")
    parser.add_argument("--seed", type=int, help="what the clients do; when they do it is up to the machine")
    parser.add_argument(
        "--directory", type=Path, help="kept if something does not hold; default: a temporary one"
    )
    options = parser.parse_args()
    seed = random.getrandbits(32) if options.seed is None else options.seed
    directory = options.directory or Path(tempfile.mkdtemp(prefix="ringkv-elastic-")) / "cluster"
    print(f"seed {seed}, directory {directory}")
    story = Story(directory, seed, partial(print, flush=True))
    try:
        story.short() if options.short else story.whole()
        story.judge()
    except BaseException:
        print(f"the cluster is left as it is in {directory}: kvcli dev status --dir {directory}")
        raise
    story.end()
    print("everything held")


if __name__ == "__main__":
    main()
