"""A disk that fills up, or turns read-only, on a file system of the test's own."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.benchmarks.faults import rows_digest
from pipeline.storage import open_manifest, verify
from pipeline.storage.locations import UnwritableError
from tests.cluster.conftest import World
from tests.cluster.nights import Nights


class Disk:
    """A file system in memory, mounted on a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._mount("size=64m", "-t", "tmpfs", "tmpfs")

    def _mount(self, options: str, *what: str) -> None:
        command = ["mount", *what, "-o", options, str(self.path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"mounting a file system takes more rights: {done.stderr.strip()}")

    def leave(self, kilobytes: int) -> None:
        """Make the disk so small that this much is free."""
        state = os.statvfs(self.path)
        used = (state.f_blocks - state.f_bfree) * state.f_frsize // 1024
        self._mount(f"remount,size={used + kilobytes}k")

    def grow(self) -> None:
        self._mount("remount,rw,size=64m")

    def refuse_writing(self) -> None:
        self._mount("remount,ro")

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    mounted = Disk(tmp_path / "disk")
    yield mounted
    mounted.unmount()


def test_a_night_on_a_disk_that_fills_up(local_ray: None, disk: Disk, world: World):
    captions = list(world.captions)
    random.Random(6).shuffle(captions)
    nights = Nights(str(disk.path), str(world.images), captions)
    nights.new_rows("a", units=2)
    first = nights.run()
    before = rows_digest(nights.dataset)
    nights.new_rows("b", units=8)

    # Every unit takes some 20 KB in embeddings, ids and receipts alone.
    disk.leave(kilobytes=100)
    with pytest.raises(UnwritableError, match=r"cannot write .*the disk is full"):
        nights.run()
    assert rows_digest(nights.dataset) == before
    assert verify(nights.dataset).problems == ()
    hidden = [path for path in disk.path.rglob(".*") if path.is_file()]
    assert hidden == []  # no temporary file is left to fill the disk

    disk.refuse_writing()
    with pytest.raises(UnwritableError, match=r"cannot write .*read-only"):
        nights.run()
    assert verify(nights.dataset).problems == ()

    disk.grow()
    second = nights.run()
    assert second["parent"] == first["version"]
    assert (second["added"], second["kept"]) == (8, 2)
    encoded = second["flows"][0]
    assert encoded["reused_units"] > 2  # what had been written before the disk was full
    assert open_manifest(nights.dataset).rows == 250
    nights.check()
