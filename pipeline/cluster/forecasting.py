"""What a configuration asks of a forecast; without Ray, so that a stored calibration is enough."""

from __future__ import annotations

from typing import Any

from pipeline.cluster.sources import said_embeddings
from pipeline.config import RunConfig
from pipeline.forecast.calibration import Calibration
from pipeline.forecast.prediction import Workload
from pipeline.report.timing import TRAINING
from pipeline.storage import locations
from pipeline.storage.artifacts import read_artifact


def configuration_facts(config: RunConfig) -> dict[str, Any]:
    """Return what of a configuration a calibration is good for, without looking at its files.

    Raises:
        ValueError: when the aligner that it names cannot be read.
    """
    method: str = config.align.method
    if config.aligner.path is not None:
        said, _ = read_artifact(locations.absolute(config.aligner.path))
        method = str(said["method"])
    given = {
        f"{side} embeddings given": said_embeddings(section)
        for side, section in (("text", config.text), ("image", config.image))
    }
    return {
        "encoder.model": config.encoder.model,
        "encoder.pretrained": config.encoder.pretrained,
        "encoder.precision": config.encoder.precision,
        "encoder.compile": config.encoder.compile,
        "encoder.device": config.encoder.device,
        "encoder.options": config.encoder.options,
        "method": method,
        "fits": config.aligner.path is None,
        "rejects.check_ids": config.rejects.check_ids,
        **{name: said for name, said in given.items() if said is not None},
    }


def workload(
    config: RunConfig,
    costs: Calibration,
    *,
    rows: int | None = None,
    images: int | None = None,
    cpus: int | None = None,
    gpus: int | None = None,
    price: float | None = None,
) -> Workload:
    """Return what a configuration runs; where nothing else is said, as the calibration has it.

    Raises:
        ValueError: for counts that are none.
    """
    units = config.units
    given = said_embeddings(config.image) is True
    return Workload(
        texts=costs.texts if rows is None else rows,
        images=costs.images if images is None else images,
        rows_per_unit=units.rows_per_shard,
        images_per_unit=units.rows_per_shard if given else units.images_per_shard,
        cpus=costs.cpus if cpus is None else cpus,
        gpus=costs.gpus if gpus is None else gpus,
        training_rows=config.train.max_rows,
        steps={
            f"{TRAINING} {name}": getattr(config.align, name).steps for name in ("prior", "refiner")
        },
        price=price,
    )
