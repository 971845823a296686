"""Ray job: export a dataset in the files of a trainer; on one node, without Ray.

ray job submit --working-dir . -- python jobs/export.py DATASET TARGET --format hf [--workers N]
"""

from __future__ import annotations

import sys

from pipeline.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
