"""Ray job: measure the pipeline.

ray job submit --working-dir . -- python jobs/bench.py NAME [--json ...]
"""

from __future__ import annotations

import sys

from pipeline.cli import main

if __name__ == "__main__":
    main(["bench", *sys.argv[1:]])
