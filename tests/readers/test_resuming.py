"""A pass that was stopped goes on with the very next row, and a job of several ranks with it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.readers import SubstituteDataset
from tests.readers.samples import all_ids, write_dataset
from tests.readers.streams import ROWS, TOTAL, batches, dataset, loader, names


class TestResuming:
    @pytest.fixture(params=[0, 1, 2, 3])
    def workers(self, request: pytest.FixtureRequest) -> int:
        return int(request.param)

    def test_a_plain_loader_goes_on_with_the_next_batch(self, root: str, workers: int):
        part = dataset(root)
        part.set_epoch(3)
        whole = batches(loader(part, num_workers=workers))
        for count in (0, 1, 4, 7, len(whole) - 1, len(whole)):
            again = dataset(root)
            again.load_state_dict(pickled(part.state_after(count, 4, workers)))
            source = loader(again, num_workers=workers)
            assert batches(source) == whole[count:], count

    @pytest.mark.parametrize("drop_last", [False, True])
    def test_twice_in_one_epoch(self, root: str, workers: int, drop_last: bool):
        options = {"num_workers": workers, "batch_size": 3, "drop_last": drop_last}
        part = dataset(root, rank=1, world_size=2)
        whole = batches(loader(part, **options))
        for count in (2, 5, 9):
            again = dataset(root, rank=1, world_size=2)
            again.load_state_dict(part.state_after(count, 3, workers, drop_last))
            rest = batches(loader(again, **options))
            assert rest == whole[count:]
            part = again  # what it says after more batches of the epoch is as good

    def test_the_pass_after_is_a_whole_one(self, root: str, workers: int):
        part = dataset(root)
        whole = batches(loader(part, num_workers=workers))
        part.load_state_dict(part.state_after(3, 4, workers))
        assert batches(loader(part, num_workers=workers)) == whole[3:]
        assert batches(loader(part, num_workers=workers)) == whole
        part.load_state_dict(part.state_after(3, 4, workers))
        part.set_epoch(1)  # another epoch than the state's
        assert len(batches(loader(part, num_workers=workers))) == len(whole)

    @pytest.mark.parametrize("persistent", [False, True])
    def test_the_loader_of_torchdata(self, root: str, workers: int, persistent: bool):
        from torchdata.stateful_dataloader import StatefulDataLoader

        def stateful(part: SubstituteDataset) -> Any:
            return StatefulDataLoader(
                part,
                batch_size=4,
                num_workers=workers,
                persistent_workers=persistent and workers > 0,
            )

        part = dataset(root)
        source = stateful(part)
        epochs = []
        for epoch in range(2):
            part.set_epoch(epoch)
            epochs.append(batches(source))
        assert epochs[0] != epochs[1]
        for stop in (1, 6, len(epochs[1])):
            part = dataset(root)
            source = stateful(part)
            part.set_epoch(1)
            taken = [batch["id"] for _, batch in zip(range(stop), source, strict=False)]
            state = pickled(source.state_dict())
            again = dataset(root)
            source = stateful(again)
            source.load_state_dict(state)
            again.set_epoch(1)
            rest = batches(source)
            if stop < len(epochs[1]):
                assert [*taken, *rest] == epochs[1]
                again.set_epoch(0)
                assert batches(source) == epochs[0]
            else:
                assert taken == epochs[1]

    def test_to_the_row(self, root: str):
        part = dataset(root)
        whole = names(part)
        for count in range(0, TOTAL + 1, 9):
            rows = iter(part)
            taken = [next(rows)["id"] for _ in range(count)]
            again = dataset(root)
            again.load_state_dict(part.state_dict())
            assert taken + names(again) == whole

    def test_it_reads_no_window_before(self, root: str, monkeypatch: pytest.MonkeyPatch):
        part = dataset(root)
        part.load_state_dict(part.state_after(TOTAL - 1, 1, 0))
        read: list[int] = []
        monkeypatch.setattr(
            "pipeline.readers.dataset.window_order",
            lambda rows, **names: read.append(names["window"]) or np.arange(rows),
        )
        assert len(names(part)) == 1
        assert read == [(TOTAL - 1) // 8]

    @pytest.mark.parametrize(
        ("options", "what"),
        [
            ({"seed": 1}, "seed 0 and this dataset of seed 1"),
            ({"buffer_size": 9}, "buffer_size"),
            ({"shuffle": False}, "shuffle"),
            ({"equal_ranks": True}, "equal_ranks"),
            ({"world_size": 2}, "world_size"),
            ({"rank": 1, "world_size": 2}, "rank|world_size"),
        ],
    )
    def test_a_state_of_another_order_is_refused(
        self, root: str, options: dict[str, Any], what: str
    ):
        state = dataset(root).state_after(1, 4, 2)
        with pytest.raises(ValueError, match=f"the state is of .*({what})"):
            dataset(root, **options).load_state_dict(state)

    def test_a_state_of_another_version_or_none(self, root: str, tmp_path: Path):
        write_dataset(str(tmp_path), ROWS[:2])
        state = dataset(str(tmp_path)).state_dict()
        with pytest.raises(ValueError, match="the state is of version 000001-"):
            dataset(root).load_state_dict(state)
        with pytest.raises(ValueError, match="it lacks buffer_size, "):
            dataset(root).load_state_dict({"version": "x"})
        with pytest.raises(ValueError, match="an epoch has 21"):
            dataset(root).state_after(22, 4, 0)

    def test_a_state_of_other_workers_is_refused(self, root: str, monkeypatch: Any):
        part = dataset(root)
        part.load_state_dict(part.state_after(1, 4, 3))
        with pytest.raises(ValueError, match="of 3 DataLoader workers and there are 1; resume"):
            iter(part)
        # A worker's own state is no state of all of them.
        part.load_state_dict({**part.state_after(1, 4, 2), "positions": [4, None]})
        monkeypatch.setattr(
            "pipeline.readers.dataset.get_worker_info", lambda: SimpleNamespace(id=0, num_workers=2)
        )
        with pytest.raises(ValueError, match="the state is of another worker than 1"):
            iter(part)


def pickled(state: Any) -> Any:
    """Return a state after it was in a file, as checkpoints are."""
    return pickle.loads(pickle.dumps(state))


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Any]:
    """Return a function that runs a script as two ranks of torch.distributed, which print."""

    def run(script: str, *arguments: str) -> list[list[str]]:
        path = tmp_path / "job.py"
        path.write_text(script)
        meeting = tmp_path / f"meeting-{len(list(tmp_path.iterdir()))}"
        ranks = [
            subprocess.Popen(
                [sys.executable, str(path), str(meeting), str(rank), *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
            )
            for rank in range(2)
        ]
        done = [rank.communicate(timeout=200) for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], done
        return [output.split() for output, _ in done]

    return run


JOB = """
import sys, torch, torch.distributed as distributed
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from pipeline.readers import SubstituteDataset

meeting, rank, root, kind, stop, states, resume = sys.argv[1:]
rank, stop = int(rank), int(stop)
if __name__ == "__main__":
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    dataset = SubstituteDataset(root, buffer_size=8)
    assert (dataset.rank, dataset.world_size) == (rank, 2)
    dataset.set_epoch(2)
    path = f"{states}/{kind}-{rank}.pt"
    Loader = StatefulDataLoader if kind == "stateful" else DataLoader
    source = Loader(dataset, batch_size=4, num_workers=2)
    if resume == "resume":
        (source if kind == "stateful" else dataset).load_state_dict(
            torch.load(path, weights_only=True)
        )
    for number, batch in enumerate(source, start=1):
        print(*batch["id"])
        if number == stop:
            state = (
                source.state_dict() if kind == "stateful" else dataset.state_after(number, 4, 2)
            )
            torch.save(state, path)
            break
    distributed.barrier()
    distributed.destroy_process_group()
"""


@pytest.mark.parametrize("kind", ["plain", "stateful"])
def test_a_job_of_two_ranks_stopped_and_resumed(root: str, job: Any, tmp_path: Path, kind: str):
    whole = job(JOB, root, kind, "0", str(tmp_path), "begin")
    assert sorted([*whole[0], *whole[1]]) == all_ids(ROWS)
    first = job(JOB, root, kind, "5", str(tmp_path), "begin")
    rest = job(JOB, root, kind, "0", str(tmp_path), "resume")
    assert [before + after for before, after in zip(first, rest, strict=True)] == whole
    assert all(len(before) == 20 for before in first)
