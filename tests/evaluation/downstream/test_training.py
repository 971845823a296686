"""Training by stages: what changes, what repeats, and that something is learnt."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from pipeline.evaluation.downstream.answering import examine
from pipeline.evaluation.downstream.model import MultimodalDecoder, Tokens
from pipeline.evaluation.downstream.samples import Sample
from pipeline.evaluation.downstream.settings import DecoderSettings, StageSettings
from pipeline.evaluation.downstream.training import Encoded, _batches, encode, train
from tests.evaluation.downstream.samples import COLOURS, tiny_data, tiny_model, tiny_settings

STAGE = StageSettings(epochs=1, learning_rate=1e-2)


def run(
    model: MultimodalDecoder,
    tokens: Tokens,
    *,
    stage: StageSettings = STAGE,
    projector: bool = False,
    text: bool = False,
    blind: bool = False,
    seed: int = 0,
) -> list[float]:
    image = tiny_data().image
    embeddings = torch.zeros_like(image.embeddings) if blind else image.embeddings
    part = model.projector if projector else model.decoder if text else model
    return train(
        model,
        list(part.parameters()),
        encode(image.instructions, tokens),
        None if text else embeddings,
        stage,
        batch_size=16,
        pad=tokens.pad,
        seed=seed,
    )


def test_samples_are_a_prompt_and_an_answer_that_ends():
    _, tokens = tiny_model()
    samples = [Sample(4, "x", "what is it?", "a red one"), Sample(2, "x", "what is it?", "猫")]
    for sample, found in zip(samples, encode(samples, tokens), strict=True):
        assert found.row == sample.row
        assert found.tokens[: found.prompt] == tokens.prompt(sample.prompt)
        assert tokens.text(found.tokens[found.prompt :]) == sample.answer
        assert found.tokens[-1] == tokens.end


@pytest.mark.parametrize("part", ["projector", "text", "all"])
def test_only_the_chosen_parameters_change(part: str):
    model, tokens = tiny_model()
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    run(model, tokens, projector=part == "projector", text=part == "text")
    same = {name for name, one in model.named_parameters() if torch.equal(one, before[name])}
    # What stays is not even asked for gradients.
    assert same == {name for name, one in model.named_parameters() if not one.requires_grad}
    if part == "projector":
        assert same == {name for name in before if name.startswith("decoder.")}
    elif part == "text":
        assert same == {name for name in before if name.startswith("projector.")}
    else:
        assert not same


def test_equal_seeds_give_equal_losses_to_the_bit_and_others_do_not():
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(losses))
        losses.append(run(*tiny_model(), seed=seed))
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_dropout_is_seeded_too():
    config = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2}
    settings = tiny_settings(decoder=DecoderSettings(config=config, vocabulary=320))
    losses = []
    for world in (1, 2):
        torch.manual_seed(world)
        model, tokens = tiny_model(settings)
        assert model.decoder.config.resid_pdrop > 0
        losses.append(run(model, tokens))
        torch.manual_seed(3)
        expected = torch.rand(2)
        torch.manual_seed(3)
        run(*tiny_model(settings))
        assert torch.equal(torch.rand(2), expected)  # what comes after is left as it was
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("epochs", "steps"), [(1, 24), (2.5, 60), (0.01, 1)])
def test_a_stage_has_as_many_steps_as_its_epochs(epochs: float, steps: int):
    model, tokens = tiny_model()
    shown: list[tuple[int, int]] = []
    samples = encode(tiny_data().image.instructions, tokens)
    assert len(samples) == 24 * 16
    losses = train(
        model,
        list(model.projector.parameters()),
        samples,
        tiny_data().image.embeddings,
        StageSettings(epochs=epochs),
        batch_size=16,
        pad=tokens.pad,
        seed=0,
        progress=lambda done, whole: shown.append((done, whole)),
    )
    assert len(losses) == steps
    assert shown == [(step + 1, steps) for step in range(steps)]
    assert all(math.isfinite(loss) for loss in losses)


def test_an_epoch_reads_every_sample_once_and_the_next_in_another_order():
    samples = [Encoded(row, [0] * (3 + row % 7), 2) for row in range(150)]
    batches = list(_batches(samples, 8, 38, torch.Generator().manual_seed(0)))
    first = [sample.row for batch in batches[:19] for sample in batch]
    second = [sample.row for batch in batches[19:] for sample in batch]
    assert sorted(first) == sorted(second) == list(range(150))
    assert first != second
    # Like lengths go together: batches need less padding than in the order of rows.
    lengths = [[len(sample.tokens) for sample in batch] for batch in batches]
    assert sum(len(one) * max(one) for one in lengths) < 1.1 * sum(map(sum, lengths))


def test_a_model_learns_what_the_pictures_show_and_a_blind_one_cannot():
    data = tiny_data()
    marks, losses = {}, {}
    for blind in (False, True):
        model, tokens = tiny_model()
        losses[blind] = run(
            model, tokens, stage=StageSettings(epochs=8, learning_rate=1e-2), blind=blind
        )
        marks[blind] = examine(model, tokens, data.test, blind=blind)
    assert losses[False][-1] < 0.1 * losses[False][0]
    assert marks[False]["colour"] > 0.95
    assert marks[False]["captioning"] > 0.95
    # The blind one answers alike for every picture: at best the most frequent colour is right.
    asked = Counter(one.answer for one in data.test.questions if one.task == "colour")
    assert marks[True]["colour"] in {asked[colour] / asked.total() for colour in (*COLOURS, "")}
    assert marks[True]["colour"] <= max(asked.values()) / asked.total() < 0.4
    assert losses[True][-1] > 2 * losses[False][-1]


def test_text_alone_is_learnt_without_any_picture():
    model, tokens = tiny_model()
    losses = run(model, tokens, stage=StageSettings(epochs=4, learning_rate=5e-3), text=True)
    assert losses[-1] < 0.3 * losses[0]
