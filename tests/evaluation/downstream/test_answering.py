"""Asking and marking: greedy decoding, answers by script, F1 and hallucination by hand."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.evaluation.downstream import answering
from pipeline.evaluation.downstream.answering import examine, generate, named_f1
from pipeline.evaluation.downstream.model import MultimodalDecoder, Tokens
from pipeline.evaluation.downstream.samples import Examination, Sample
from pipeline.evaluation.downstream.settings import DecoderSettings
from tests.evaluation.downstream.samples import (
    DIMENSION,
    LLAMA,
    TEXTS,
    named,
    tiny_data,
    tiny_model,
    tiny_settings,
)


class Scripted(nn.Module):
    """A decoder that says one of two scripts: by the sign of an embedding's first coordinate."""

    def __init__(self, positive: list[int], negative: list[int], size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, DIMENSION)
        self.scripts = (negative, positive)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(
        self,
        input_ids: Any = None,
        inputs_embeds: Any = None,
        past_key_values: Any = None,
        use_cache: bool = True,
    ) -> Any:
        if inputs_embeds is not None:
            past_key_values = (0, (inputs_embeds[:, 0, 0] > 0).tolist())
        said, signs = past_key_values
        chosen = [self.scripts[sign] for sign in signs]
        now = torch.tensor([script[min(said, len(script) - 1)] for script in chosen])
        logits = nn.functional.one_hot(now, self.embedding.num_embeddings).float()[:, None]
        return SimpleNamespace(logits=logits, past_key_values=(said + 1, signs))


def scripted(tokens: Tokens, positive: str, negative: str, after: str = "") -> MultimodalDecoder:
    end = tokens.answer(after) if after else []
    scripts = [[*tokens.answer(text), *end] for text in (positive, negative)]
    model = MultimodalDecoder(Scripted(scripts[0], scripts[1], tokens.size), DIMENSION, 4, 1)
    model.projector = nn.Identity()
    return model


def examination(signs: list[int], questions: list[Sample]) -> Examination:
    embeddings = torch.zeros(len(signs), DIMENSION)
    embeddings[:, 0] = torch.tensor(signs).float()
    return Examination(embeddings, questions, [Counter(["red"]) for _ in signs], named)


def presence(answers: list[str]) -> list[Sample]:
    return [Sample(row, "presence", "is it red?", answer) for row, answer in enumerate(answers)]


def test_marks_are_shares_of_right_answers_and_of_absent_things_said_to_be_there():
    tokens = Tokens.learnt([*TEXTS, "yes no"], 320)
    model = scripted(tokens, "yes", "no", after="red and more")
    # Rows 0, 1 and 3 are answered yes, 2 and 4 no.
    test = examination([1, 1, -1, 1, -1], presence(["yes", "no", "no", "no", "yes"]))
    marks = examine(model, tokens, test)
    assert marks == pytest.approx(
        {"presence": 2 / 5, "captioning": 0.0, "average": 1 / 5, "hallucination": 2 / 3}
    )


def test_tasks_count_alike_in_the_average_and_captions_by_what_they_name():
    tokens = Tokens.learnt(TEXTS, 320)
    model = scripted(tokens, "red", "a red green thing")
    questions = [
        Sample(0, "colour", "what colour is it?", "red"),
        Sample(1, "colour", "what colour is it?", "red"),
        Sample(0, "shape", "what is it?", "circle"),
    ]
    marks = examine(model, tokens, examination([1, -1], questions))
    f1 = 2 * 2 / (3 + 2)
    assert marks == pytest.approx(
        {"colour": 1 / 2, "shape": 0.0, "captioning": f1, "average": (0.5 + f1) / 3}
    )
    assert "hallucination" not in marks  # nothing absent was asked for


def test_long_answers_are_read_to_their_end():
    """In a small vocabulary, a word may be many tokens."""
    tokens = Tokens.learnt(["x"], 300)
    word = "checkered"
    assert len(tokens.answer(word)) > 8
    question = Sample(0, "background", "what is it?", word)
    marks = examine(scripted(tokens, word, "no"), tokens, examination([1], [question]))
    assert marks["background"] == 1.0


def test_a_blind_model_sees_zeros():
    tokens = Tokens.learnt(TEXTS, 320)
    model = scripted(tokens, "yes", "no")
    test = examination([1, 1], presence(["yes", "yes"]))
    assert examine(model, tokens, test)["presence"] == 1.0
    assert examine(model, tokens, test, blind=True)["presence"] == 0.0
    real, _ = tiny_model()
    data = tiny_data().test
    other = replace(data, embeddings=data.embeddings.roll(1, 0))
    blind = examine(real, tokens, data, blind=True)
    assert blind == examine(real, tokens, other, blind=True)


def lively(config: dict[str, Any]) -> tuple[MultimodalDecoder, Tokens]:
    """Return a random model that says other things about other pictures."""
    settings = tiny_settings(decoder=DecoderSettings(config=config, vocabulary=320))
    model, tokens = tiny_model(settings, seed=2)
    with torch.no_grad():
        model.projector[2].weight *= 20
    return model, tokens


@torch.no_grad()
def said_token_by_token(
    model: MultimodalDecoder, tokens: Tokens, embedding: Tensor, prompt: list[int], most: int
) -> str:
    """Decode greedily, reading all from the start for every token."""
    model.eval()
    said: list[int] = []
    while len(said) < most and tokens.end not in said:
        inputs = model.inputs(embedding[None], torch.tensor([[*prompt, *said]]))
        logits = model.decoder(inputs_embeds=inputs, use_cache=False).logits
        said.append(int(logits[0, -1].argmax()))
    return tokens.text(said)


@pytest.mark.parametrize(
    "config",
    [
        {**LLAMA, "initializer_range": 0.5},
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3},
    ],
)
def test_decoding_with_a_cache_says_what_decoding_without_one_does(config: dict[str, Any]):
    model, tokens = lively(config)
    embeddings = tiny_data().test.embeddings[:12]
    prompt = tokens.prompt("what colour is it?")
    expected = [said_token_by_token(model, tokens, row, prompt, 10) for row in embeddings]
    assert len(set(expected)) > 4
    assert generate(model, tokens, embeddings, prompt, most=10) == expected


def test_answers_do_not_depend_on_what_is_asked_beside_them(monkeypatch: pytest.MonkeyPatch):
    model, tokens = lively({**LLAMA, "initializer_range": 0.5})
    data = tiny_data().test
    prompts = ("what colour is it?", "is it yellow?", "tell it", "is it red?")
    questions = [Sample(row % 12, "x", prompts[row % 4], "red") for row in range(24)]
    test = replace(data, questions=questions)
    whole = answering._answers(model, tokens, data.embeddings, test)
    alone = [
        said_token_by_token(model, tokens, data.embeddings[one.row], tokens.prompt(one.prompt), 6)
        for one in questions
    ]
    assert whole == alone
    assert len(set(whole)) > 4
    monkeypatch.setattr(answering, "_BATCH", 5)
    assert answering._answers(model, tokens, data.embeddings, test) == alone
    captions = generate(model, tokens, data.embeddings, tokens.prompt("it"), most=4)
    assert len(captions) == len(data.embeddings)


def test_named_f1_by_hand():
    found = [Counter("ab"), Counter("c"), Counter()]
    references = [Counter("a"), Counter("cdd"), Counter("e")]
    assert named_f1(found, references) == pytest.approx(2 * 2 / (3 + 5))
    assert named_f1(references, references) == 1.0
    assert named_f1([Counter("aab")], [Counter("aac")]) == pytest.approx(2 / 3)
    assert named_f1([Counter("a")], [Counter("b")]) == 0.0
    assert named_f1([Counter()], [Counter()]) == 0.0
    assert math.isfinite(named_f1([], []))
