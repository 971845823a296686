"""A short measurement for a forecast: the very run, on samples of its own corpora.

Each run writes to a folder of its own inside the output, so that it meets the storage and the
cluster of the real one, and is deleted. Sizes differ in units and in rows of a unit, so that what
comes once, by unit and by row can be told apart.
"""

from __future__ import annotations

import dataclasses
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from pipeline.cluster.forecasting import configuration_facts
from pipeline.cluster.outputs import Side, output
from pipeline.cluster.reductions import GROUPS, MOST_UNITS_PER_GROUP
from pipeline.cluster.resources import check_resources
from pipeline.cluster.samples import read_sample
from pipeline.cluster.session import ray_session
from pipeline.cluster.sources import source_corpus
from pipeline.cluster.watched import Measuring, Size, Watched
from pipeline.cluster.watching import OtherWork
from pipeline.config import RunConfig, parse_config
from pipeline.forecast.calibration import Calibration, Cost, StageCost
from pipeline.forecast.fitting import fitted_cost, fitted_stage
from pipeline.forecast.prediction import Workload, predict
from pipeline.report.console import Reporter
from pipeline.storage import locations
from pipeline.storage.id_index import SHARDS_PER_SEGMENT

_TASKS = {"checking ids": {}, "indexing ids": {"units_a_task": SHARDS_PER_SEGMENT}}
_STATISTICS = {"units_a_task": MOST_UNITS_PER_GROUP, "least_tasks": GROUPS}
"""How units are shared among tasks that write no receipts: by the stage's title, and else."""
_DISTURBED = 0.1
"""A share of the processors that other work takes, above which it is told."""
_COPIES = (2.0, 6.0)
"""A worker holds so many of a unit's rows at once, at least and at most; what else its memory grew
by in small units is not theirs."""


def calibrate(
    config: RunConfig, machine: Mapping[str, Any], reporter: Reporter, *, verbose: bool = False
) -> Calibration:
    """Measure a run of this configuration on the machines that Ray has; takes a minute or two.

    Nothing is left of what it writes but what `demo:` paths draw. Training is measured as in the
    driver.

    Raises:
        ValueError: when the corpora or the output cannot be used, there is no cluster, or it has
            not what the configuration asks for.
    """
    sides: tuple[Side, ...] = ("text",) if config.aligner.path else ("text", "image")
    samples = {side: read_sample(source_corpus(config, side, reporter)) for side in sides}
    facts = configuration_facts(config)
    for side, sample in samples.items():
        facts[f"{side} embeddings given"] = sample.dimension is not None
    alone = parse_config({**config.to_mapping(), "train": {**vars(config.train), "workers": 0}})
    start = time.perf_counter()
    with ray_session(alone, verbose=verbose), _folder(alone) as folder:
        started = time.perf_counter() - start
        check_resources(alone, "run", reporter)
        resources = ray.cluster_resources()
        cpus, gpus = max(1, int(resources.get("CPU", 1))), int(resources.get("GPU", 0))
        measuring, others = Measuring(alone, samples, folder, cpus), OtherWork()
        with reporter.counted("measuring") as show:
            cold, runs = measuring.cold_and_warm(show)
        disturbed = others.share()
    if disturbed > _DISTURBED:
        reporter.say(
            f"other work took {disturbed:.0%} of this machine's processors meanwhile: the forecast "
            "is of a machine as busy; measure again when it is quiet"
        )
    found = Calibration(
        machine=dict(machine),
        configuration=facts,
        disturbed=disturbed,
        dimension=measuring.dimension,
        cpus=cpus,
        gpus=gpus,
        texts=samples["text"].corpus_rows,
        images=samples["image"].corpus_rows if "image" in samples else 0,
        start=0.0,
        stages=_stages(runs, cpus, gpus),
        storage=_storage(runs),
        worker_memory=_worker_memory([(measuring.unit_bytes(one.size), one) for one in runs]),
        text_row_bytes=measuring.row_bytes("text"),
        image_row_bytes=measuring.row_bytes("image"),
        driver_bytes=cold.driver,  # later ones hold what samples were written from
    )
    warm = predict(found, _workload(found, cold)).seconds
    return dataclasses.replace(found, start=started + max(0.0, cold.seconds - warm))


@contextmanager
def _folder(config: RunConfig) -> Iterator[str]:
    """Have a folder inside the output while inside; it is deleted with all that is in it."""
    root = output(config)
    folder = locations.join(root, f"calibration-{secrets.token_hex(4)}")
    fresh = locations.is_local(root) and not locations.is_folder(root)
    locations.check_writable(folder)
    try:
        yield folder
    finally:
        if locations.is_local(folder):
            shutil.rmtree(locations.absolute(folder), ignore_errors=True)
            if fresh and not any(Path(locations.absolute(root)).iterdir()):
                Path(locations.absolute(root)).rmdir()
        else:
            locations.remove_files(entry.url for entry in locations.list_files(folder))


def _stages(runs: Sequence[Watched], cpus: int, gpus: int) -> tuple[StageCost, ...]:
    seen = [one.run for one in runs]
    found = []
    for title, (rows_of, where) in runs[-1].titles.items():
        tasks = _TASKS.get(title.partition(" (")[0], _STATISTICS) if where == "tasks" else {}
        found.append(fitted_stage(title, rows_of, where, seen, cpus=cpus, gpus=gpus, **tasks))
    return tuple(found)


def _storage(runs: Sequence[Watched]) -> dict[str, Cost]:
    found = {}
    for folder in runs[-1].bytes:
        sizes = [one.run.sizes["image" if folder.endswith("image") else "text"] for one in runs]
        found[folder] = fitted_cost(sizes, [one.bytes.get(folder, 0) for one in runs])
    return found


def _worker_memory(runs: Sequence[tuple[float, Watched]]) -> Cost:
    """Return a worker's peak, of runs by the bytes of their units; nothing where none was seen."""
    largest, last = runs[-1]
    if not last.worker:
        return Cost()
    seen = fitted_cost([(0.0, size) for size, _ in runs], [one.worker for _, one in runs])
    copies = min(max(seen.row, _COPIES[0]), _COPIES[1])
    return Cost(fixed=max(0.0, last.worker - copies * largest), row=copies)


def _workload(costs: Calibration, watched: Watched) -> Workload:
    """Return the workload that a watched run was."""
    size: Size = watched.size
    return Workload(
        texts=size.units * size.rows["text"],
        images=size.units * size.rows.get("image", 0),
        rows_per_unit=size.rows["text"],
        images_per_unit=size.rows.get("image", 1),
        cpus=costs.cpus,
        gpus=costs.gpus,
        training_rows=watched.training_rows,
        steps={title: stage.steps for title, stage in watched.run.stages.items()},
    )
