"""Captions through an encoder in a plain loop, on one core: what the encode stage is measured by.

Run as `python -m`, one process for each core, so that they work side by side as workers do.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import torch

from pipeline.benchmarks.commands import CommandError
from pipeline.encoders import OpenClipEncoder


def bare_rate(
    captions: Path, rows: int, *, model: str, pretrained: str | None, cores: int
) -> float:
    """Return captions a second of a plain loop on so many cores, batches of `rows`; no start.

    Every process encodes the whole file.

    Raises:
        CommandError: when one of them fails.
    """
    arguments = [str(captions), str(rows), model, *([pretrained] if pretrained else [])]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline.benchmarks.bare_loop", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(cores)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # it has loaded its encoder, and waits for the others
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        found = [process.stdout.read() for process in processes if process.stdout is not None]
        for process in processes:
            process.wait()
        if any(process.returncode for process in processes):
            raise CommandError("the plain loop of encoding failed")
    finally:
        for process in processes:
            process.kill()
    return sum(float(one) for one in found)


def _loop(path: str, rows: int, model: str, pretrained: str | None) -> float:
    captions = Path(path).read_text(encoding="utf-8").splitlines()
    torch.set_num_threads(1)
    encoder = OpenClipEncoder(model, pretrained, towers=("text",))
    encoder.encode_texts(captions[:8])
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    for first in range(0, len(captions), rows):
        encoder.encode_texts(captions[first : first + rows])
    return len(captions) / (time.perf_counter() - start)


if __name__ == "__main__":
    given = sys.argv[1:]
    print(_loop(given[0], int(given[1]), given[2], given[3] if len(given) > 3 else None))
