"""Whole trials on tiny data: every regime, what each may lean on, and that they repeat."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from pipeline.align.settings import AlignSettings
from pipeline.evaluation.downstream.model import make_decoder
from pipeline.evaluation.downstream.samples import DownstreamData, Material
from pipeline.evaluation.downstream.settings import (
    REGIMES,
    DecoderSettings,
    DownstreamSettings,
    InstructionStage,
)
from pipeline.evaluation.downstream.trials import (
    BLIND,
    REAL_IMAGES,
    TrialResult,
    Weights,
    learn_language,
    run_trial,
)
from tests.evaluation.downstream.samples import tiny_data, tiny_settings

TASKS = {"colour", "presence", "captioning", "average", "hallucination"}
SETTINGS = tiny_settings()


@pytest.fixture(scope="module")
def data() -> DownstreamData:
    return tiny_data()


@pytest.fixture(scope="module")
def language(data: DownstreamData) -> Weights:
    return learn_language(data, SETTINGS, 0)


@pytest.fixture(scope="module")
def identity(data: DownstreamData, language: Weights) -> TrialResult:
    return trial("identity", data, language)


def trial(
    method: str,
    data: DownstreamData,
    language: Weights,
    settings: DownstreamSettings = SETTINGS,
    seed: int = 0,
) -> TrialResult:
    return run_trial(method, seed, data, settings, AlignSettings(), language)


def compared(result: TrialResult) -> dict[str, object]:
    return {name: value for name, value in asdict(result).items() if name != "seconds"}


def drawn_anew(material: Material) -> Material:
    generator = torch.Generator().manual_seed(77)
    other = torch.randn(material.embeddings.shape, generator=generator)
    return material.seen_as(torch.nn.functional.normalize(other))


def test_a_method_is_marked_in_every_regime_and_repeats(data: DownstreamData, language: Weights):
    result = trial("c3", data, language)
    assert set(result.marks) == set(REGIMES)
    for marks in result.marks.values():
        assert set(marks) == TASKS
        assert all(0 <= value <= 1 for value in marks.values())
        tasks = [marks[task] for task in ("colour", "presence", "captioning")]
        assert marks["average"] == pytest.approx(sum(tasks) / 3)
    assert set(result.losses) == set(REGIMES)
    assert (result.method, result.seed) == ("c3", 0)
    assert result.seconds > 0
    assert result.to_mapping()["marks"] == result.marks
    torch.manual_seed(12)  # what was drawn before does not matter
    assert compared(trial("c3", data, language)) == compared(result)
    assert trial("c3", data, language, seed=1).losses != result.losses


def test_only_the_regimes_that_are_asked_for_are_trained(
    data: DownstreamData, language: Weights, identity: TrialResult
):
    for name in REGIMES:
        alone = trial("identity", data, language, replace(SETTINGS, regimes=(name,)))
        assert alone.marks == {name: identity.marks[name]}
        assert alone.losses[name] == identity.losses[name]


def test_references_are_marked_once_and_stand_apart(data: DownstreamData, language: Weights):
    stage = InstructionStage(epochs=5, learning_rate=1e-2)
    settings = replace(SETTINGS, instructions=stage, regimes=("text-only",))
    blind, real = (trial(name, data, language, settings) for name in (BLIND, REAL_IMAGES))
    assert set(blind.marks) == {BLIND}
    assert set(real.marks) == {REAL_IMAGES}
    assert real.marks[REAL_IMAGES]["colour"] > 0.9
    assert blind.marks[BLIND]["colour"] < 0.4
    assert blind.parameters == real.parameters > 1000


def test_a_blind_trial_leans_on_no_embedding(data: DownstreamData, language: Weights):
    expected = compared(trial(BLIND, data, language))
    others = replace(
        data,
        text=drawn_anew(data.text),
        image=drawn_anew(data.image),
        test=replace(data.test, embeddings=data.test.embeddings.roll(1, 0)),
    )
    assert compared(trial(BLIND, others, language)) == expected


def test_real_images_are_read_without_any_text_embedding(data: DownstreamData, language: Weights):
    real = trial(REAL_IMAGES, data, language)
    assert set(real.marks) == {REAL_IMAGES, "real-instructions"}  # few of them, and all
    assert real.losses[REAL_IMAGES] != real.losses["real-instructions"]
    other_text = replace(data, text=drawn_anew(data.text))
    assert compared(trial(REAL_IMAGES, other_text, language)) == compared(real)


def changed_from(material: Material, first: int) -> Material:
    """Return a material whose embeddings from a row on belong to other rows."""
    rows = material.embeddings.clone()
    rows[first:] = rows[first:].roll(1, 0)
    return material.seen_as(rows)


def same_regimes(one: TrialResult, other: TrialResult) -> set[str]:
    same = {name for name in REGIMES if one.losses[name] == other.losses[name]}
    assert all(one.marks[name] == other.marks[name] for name in same)
    return same


def test_each_regime_leans_on_what_it_may(
    data: DownstreamData, language: Weights, identity: TrialResult
):
    half = len(data.text.embeddings) // 2
    for changed, same in (
        # The second half of the text is that of twice the text.
        ({"text": changed_from(data.text, half)}, {"text-only", "real-instructions"}),
        ({"image": drawn_anew(data.image)}, {"text-only", "double-text"}),
        ({"image": changed_from(data.image, SETTINGS.real_images)}, set(REGIMES)),
        ({"text": drawn_anew(data.text)}, set()),
    ):
        found = trial("identity", replace(data, **changed), language)
        assert same_regimes(found, identity) == same


def test_methods_train_on_their_own_substitutes(data: DownstreamData, language: Weights):
    settings = replace(SETTINGS, regimes=("text-only",))
    losses = {
        name: trial(name, data, language, settings).losses["text-only"]
        for name in ("identity", "c3", "realign")
    }
    assert len(set(losses.values())) == 3


def test_the_language_is_read_once_and_brought_along(
    data: DownstreamData, language: Weights, identity: TrialResult
):
    again = learn_language(data, SETTINGS, 0)
    assert set(again) == set(language)
    assert all(torch.equal(again[name], tensor) for name, tensor in language.items())
    other = learn_language(data, SETTINGS, 1)
    assert not all(torch.equal(other[name], tensor) for name, tensor in language.items())
    texts = replace(data, text=drawn_anew(data.text), image=drawn_anew(data.image))
    blind = learn_language(texts, SETTINGS, 0)
    assert all(torch.equal(blind[name], tensor) for name, tensor in language.items())
    # A trial begins with what was read, and leaves it as it was.
    kept = {name: tensor.clone() for name, tensor in language.items()}
    settings = replace(SETTINGS, regimes=("text-only",))
    begun = trial("identity", data, language, settings).losses["text-only"]
    assert begun == identity.losses["text-only"]
    assert begun != trial("identity", data, {}, settings).losses["text-only"]
    assert all(torch.equal(kept[name], tensor) for name, tensor in language.items())


def test_a_local_decoder_brings_its_language(data: DownstreamData, tmp_path: Path):
    texts = [sample.answer for sample in data.text.instructions]
    decoder, tokens = make_decoder(SETTINGS.decoder, texts, 5)
    decoder.save_pretrained(tmp_path)
    tokens._tokenizer.save_pretrained(tmp_path)
    settings = replace(
        SETTINGS, decoder=DecoderSettings(path=str(tmp_path)), regimes=("text-only",)
    )
    assert learn_language(data, settings, 0) == {}
    first = trial("identity", data, {}, settings)
    assert set(first.marks) == {"text-only"}
    assert compared(trial("identity", data, {}, settings)) == compared(first)


def test_an_unknown_method_is_refused(data: DownstreamData, language: Weights):
    with pytest.raises(ValueError, match="no-such-method"):
        trial("no-such-method", data, language)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_asked_for_by_name(data: DownstreamData):
    with pytest.raises(ValueError, match="gpus_per_trial is 1, but no GPU"):
        learn_language(data, replace(SETTINGS, gpus_per_trial=1.0), 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_about_the_same_marks(
    data: DownstreamData, language: Weights, identity: TrialResult
):
    on_gpu = trial("identity", data, language, replace(SETTINGS, gpus_per_trial=1.0))
    for regime, marks in identity.marks.items():
        assert on_gpu.marks[regime]["average"] == pytest.approx(marks["average"], abs=0.15)
