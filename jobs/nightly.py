"""Ray job: bring a dataset up to its text corpus; an unchanged corpus makes no new version.

ray job submit --working-dir . -- python jobs/nightly.py CONFIG [--set KEY=VALUE ...]
"""

from __future__ import annotations

import sys

from pipeline.cli import main

if __name__ == "__main__":
    main(["nightly", *sys.argv[1:]])
