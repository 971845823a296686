"""The downstream evaluation on Ray: a trial for each method and seed, resumed where it stopped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.cluster.demo_tasks import demo_data, demo_identity
from pipeline.cluster.errors import user_error
from pipeline.cluster.outputs import output
from pipeline.config import DEMO_CAPTIONS, DEMO_IMAGES, ConfigError, RunConfig
from pipeline.evaluation.downstream.caption_tasks import caption_data
from pipeline.evaluation.downstream.captioned_pairs import CaptionedPairs
from pipeline.evaluation.downstream.samples import DownstreamData
from pipeline.evaluation.downstream.summary import summarise_trials
from pipeline.evaluation.downstream.trials import (
    REFERENCES,
    learn_language,
    run_trial,
    wanted_regimes,
)
from pipeline.report.console import Reporter
from pipeline.report.downstream import write_downstream_report
from pipeline.storage import locations
from pipeline.storage.slices import combined

QUICK_SETTINGS = (
    "downstream.seeds=2",
    "downstream.captions=2000",
    "downstream.test_images=1000",
    "downstream.methods=[identity, realign, anisoalign]",
)
"""Settings for an evaluation in minutes instead of an hour."""
FOLDER = "downstream"
_TRIALS_VERSION = 1
"""To be raised whenever a trial of the same settings gives other marks."""
_RETRIES = 3
"""Of a task whose process or machine dies."""


@dataclass(frozen=True)
class _Trial:
    seed: int
    method: str
    path: str


@dataclass(frozen=True)
class _Source:
    """Where the data of a seed comes from, what it is, for the name of a trial, and how much."""

    of_seed: Callable[[int], DownstreamData]
    identity: Mapping[str, Any]
    title: str
    counts: Mapping[str, int]
    note: str = ""


_WORLD_NOTE = (
    "Instructions about real images are made from all that is to be seen, those about text from "
    "what its captions name: the distance to real images is one of supervision too."
)


def evaluate_downstream(
    config: RunConfig, reporter: Reporter, pairs: CaptionedPairs | None = None
) -> dict[str, Any]:
    """Train small multimodal LMs on every method's substitutes and read them on real images.

    On captioned `pairs`, else on the packaged world, whose captions and images are encoded first.
    Trials that are written already, of the same data and settings, are kept. Writes downstream/
    with downstream.json, index.html and figures; returns what downstream.json holds, with
    `report`, the page's path.

    Raises:
        ValueError: when the data or a setting cannot be used.
    """
    check_downstream(config, pairs=pairs is not None)
    source = _of_pairs(config, pairs) if pairs is not None else _of_world(config, reporter)
    folder = output(config, FOLDER)
    trials = _trials(config, source, folder)
    done = {trial: found for trial in trials if (found := _read(trial, config)) is not None}
    todo = [trial for trial in trials if trial not in done]
    reporter.event("trials_planned", trials=len(trials), reused=len(done))
    with reporter.counted("training and reading models") as show:
        show(len(done), len(trials))
        for trial, result in _run(config, source, todo):
            locations.write_bytes(trial.path, json.dumps(result, sort_keys=True).encode())
            done[trial] = result
            reporter.event(
                "trial_done",
                method=trial.method,
                seed=trial.seed,
                seconds=result["seconds"],
                average={name: marks["average"] for name, marks in result["marks"].items()},
            )
            show(len(done), len(trials))
    summary = summarise_trials([done[trial] for trial in trials], _facts(config, source, done))
    page = write_downstream_report(Path(folder.removeprefix("file://")), summary)
    return {**summary, "report": str(page), "reused_trials": len(trials) - len(todo)}


def _of_pairs(config: RunConfig, pairs: CaptionedPairs) -> _Source:
    def of_seed(seed: int) -> DownstreamData:
        return caption_data(pairs, config.downstream, seed)

    first = of_seed(config.seed)
    counts = _counts(config, len(first.text.embeddings) // 2, len(first.image.embeddings))
    counts["test_images"] = len(first.test.embeddings)
    title = f"{len(pairs.captions):,} pairs of {pairs.path}"
    return _Source(of_seed, {"pairs": pairs.digest()}, title, counts)


def _counts(config: RunConfig, captions: int, images: int) -> dict[str, int]:
    few = min(images, config.downstream.real_images)
    return {"captions": captions, "images": images, "real_images": few}


def check_downstream(config: RunConfig, *, pairs: bool) -> None:
    """Make sure that an evaluation on the packaged world, or on a file of pairs, can be done.

    Raises:
        ConfigError: if the world is not named or too small, the output is no local folder, or the
            sides are not text and image.
    """
    names = config.names
    if not names.default:
        raise ConfigError(
            "models are trained on captions and asked about images: leave names.source and "
            f"names.target out, which are {names.source} and {names.target}"
        )
    root = output(config)
    if "://" in root and not root.startswith("file://"):
        raise ConfigError(
            "the report is written to local files: give output.path a local folder (on a cluster, "
            "one of the head node)"
        )
    if pairs:
        return
    if (config.text.path, config.image.path) != (DEMO_CAPTIONS, DEMO_IMAGES):
        raise ConfigError(
            "questions are known for the packaged world alone: set text.path demo:captions and "
            "image.path demo:images, or give a file of embeddings and captions as PAIRS"
        )
    downstream, world = config.downstream, config.demo
    for key, has, needs in (
        ("captions", world.captions, 2 * downstream.captions),
        ("images", world.images, downstream.captions),
        ("pairs", world.pairs, downstream.test_images),
    ):
        if has < needs:
            raise ConfigError(
                f"demo.{key} is {has}; with downstream.captions={downstream.captions} and "
                f"downstream.test_images={downstream.test_images} it has to be {needs} or more"
            )


def _of_world(config: RunConfig, reporter: Reporter) -> _Source:
    settings = config.downstream
    of_seed = demo_data(config, reporter)
    counts = _counts(config, settings.captions, settings.captions)
    counts["test_images"] = settings.test_images
    return _Source(of_seed, demo_identity(config), "the packaged world", counts, _WORLD_NOTE)


def _trials(config: RunConfig, source: _Source, folder: str) -> list[_Trial]:
    settings = dataclasses.asdict(config.downstream)
    for name in ("seeds", "methods"):
        del settings[name]  # others may come beside those that are there
    if not settings["gpus_per_trial"]:
        del settings["gpus_per_trial"]  # it makes no difference where there are none
    if config.downstream.decoder.path is not None:
        settings["decoder"]["files"] = _folder_state(config.downstream.decoder.path)
    align = config.to_mapping()["align"]
    del align["method"]
    what = json.dumps([_TRIALS_VERSION, settings, align, source.identity], sort_keys=True)
    name = combined("downstream", what)[:16]
    methods = [*REFERENCES, *config.downstream.methods]
    return [
        _Trial(seed, method, locations.join(folder, f"trials/{name}/seed-{seed}-{method}.json"))
        for seed in range(config.seed, config.seed + config.downstream.seeds)
        for method in dict.fromkeys(methods)
    ]


def _folder_state(path: str) -> list[list[Any]]:
    """Return names, sizes and times of a decoder's files, which stand for their content."""
    return [[one.name, one.size, one.identity] for one in locations.list_files(str(Path(path)))]


def _read(trial: _Trial, config: RunConfig) -> dict[str, Any] | None:
    """Return the result of a trial that is there and whole."""
    try:
        found = json.loads(locations.read_bytes(trial.path))
        same = (found["method"], found["seed"]) == (trial.method, trial.seed)
        whole = wanted_regimes(trial.method, config.downstream) <= found["marks"].keys()
    except FileNotFoundError:
        return None
    except locations.StoreError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # damaged: the trial runs again
    return found if same and whole else None


def _run(
    config: RunConfig, source: _Source, trials: Sequence[_Trial]
) -> Iterator[tuple[_Trial, dict[str, Any]]]:
    """Yield trials with their results, as they come; a seed starts when a CPU would be idle."""
    gpus = config.downstream.gpus_per_trial
    as_task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=_RETRIES)
    language, trial_task = as_task(learn_language), as_task(_trial_result)
    seeds = sorted({trial.seed for trial in trials}, reverse=True)
    workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    pending: dict[Any, _Trial] = {}
    while pending or seeds:
        while seeds and len(pending) < workers:
            seed = seeds.pop()
            data = ray.put(source.of_seed(seed))
            weights = language.remote(data, config.downstream, seed)
            for trial in trials:
                if trial.seed == seed:
                    given = (trial.method, seed, data, config.downstream, config.align, weights)
                    pending[trial_task.remote(*given)] = trial
        (ready,), _ = ray.wait(list(pending), num_returns=1)
        trial = pending.pop(ready)
        try:
            yield trial, ray.get(ready)
        except RayError as error:
            for left in pending:
                ray.cancel(left, force=True)
            cause = user_error(error)
            if cause is None:
                raise
            raise ValueError(f"{trial.method}, seed {trial.seed}: {cause}") from error


def _trial_result(*arguments: Any) -> dict[str, Any]:
    return run_trial(*arguments).to_mapping()


def _facts(
    config: RunConfig, source: _Source, done: Mapping[_Trial, Mapping[str, Any]]
) -> dict[str, Any]:
    settings = config.downstream
    first = next(iter(done.values()))
    return {
        "data": source.title,
        "note": source.note,
        **source.counts,
        "parameters": first["parameters"],
        "decoder": settings.decoder.path or settings.decoder.config["model_type"],
        "seconds": sum(one["seconds"] for one in done.values()),
    }
