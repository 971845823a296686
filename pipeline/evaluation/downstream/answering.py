"""Asking a trained model about real images, and marking its answers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.evaluation.downstream.model import MultimodalDecoder, Tokens
from pipeline.evaluation.downstream.samples import CAPTIONING, DESCRIBE, Examination

_FEWEST_ANSWER_TOKENS = 6
"""More where an answer is longer, as in a small vocabulary."""
_CAPTION_TOKENS = 48
_BATCH = 500


def examine(
    model: MultimodalDecoder, tokens: Tokens, test: Examination, *, blind: bool = False
) -> dict[str, float]:
    """Return a model's marks: accuracy by task of questions, F1 of what its captions name.

    `captioning` is the F1, over all images together, of what generated captions name against the
    references; `average` the mean over tasks; `hallucination` the share of absent things that are
    said to be there, where presence is asked. A blind model is given zero embeddings.
    """
    embeddings = torch.zeros_like(test.embeddings) if blind else test.embeddings
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    absent = hallucinated = 0
    answers = _answers(model, tokens, embeddings, test)
    for question, answer in zip(test.questions, answers, strict=True):
        asked[question.task] += 1
        right[question.task] += answer == question.answer
        if question.answer == "no":
            absent += 1
            hallucinated += answer == "yes"
    marks = {task: right[task] / asked[task] for task in asked}
    captions = generate(model, tokens, embeddings, tokens.prompt(DESCRIBE), most=_CAPTION_TOKENS)
    marks[CAPTIONING] = named_f1([test.named(caption) for caption in captions], test.references)
    marks = {**marks, "average": sum(marks.values()) / len(marks)}
    if absent:
        marks["hallucination"] = hallucinated / absent
    return marks


def named_f1(found: Sequence[Counter[str]], references: Sequence[Counter[str]]) -> float:
    """Return the F1 of what captions name against what they should, counted over all of them."""
    right = sum((one & other).total() for one, other in zip(found, references, strict=True))
    named = sum(one.total() for one in found)
    wanted = sum(one.total() for one in references)
    return 2 * right / (named + wanted) if named + wanted else 0.0


def _answers(
    model: MultimodalDecoder, tokens: Tokens, embeddings: Tensor, test: Examination
) -> list[str]:
    """Return answers to the questions; those of one length are asked together, unpadded."""
    prompts = {text: tokens.prompt(text) for text in {one.prompt for one in test.questions}}
    groups: dict[int, list[int]] = defaultdict(list)
    for place, question in enumerate(test.questions):
        groups[len(prompts[question.prompt])].append(place)
    lengths = {len(tokens.answer(text)) for text in {one.answer for one in test.questions}}
    most = max(_FEWEST_ANSWER_TOKENS, *lengths) if lengths else 0
    answers = [""] * len(test.questions)
    for places in groups.values():
        for start in range(0, len(places), _BATCH):
            part = places[start : start + _BATCH]
            rows = torch.tensor([test.questions[place].row for place in part])
            ids = torch.tensor([prompts[test.questions[place].prompt] for place in part])
            texts = _decode(model, tokens, embeddings[rows], ids, most)
            for place, text in zip(part, texts, strict=True):
                answers[place] = text
    return answers


def generate(
    model: MultimodalDecoder, tokens: Tokens, embeddings: Tensor, prompt: list[int], *, most: int
) -> list[str]:
    """Return the greedy answers to one prompt about each embedding (n, d)."""
    texts: list[str] = []
    for part in embeddings.split(_BATCH):
        ids = torch.tensor(prompt).repeat(len(part), 1)
        texts += _decode(model, tokens, part, ids, most)
    return texts


@torch.inference_mode()
def _decode(
    model: MultimodalDecoder, tokens: Tokens, embeddings: Tensor, ids: Tensor, most: int
) -> list[str]:
    """Return greedy answers to prompts (n, t) of one length about embeddings (n, d)."""
    model.eval()
    inputs = model.inputs(embeddings.to(model.device), ids.to(model.device))
    found = model.decoder(inputs_embeds=inputs, use_cache=True)
    said = [found.logits[:, -1].argmax(1)]
    ended = said[-1] == tokens.end
    while len(said) < most and not bool(ended.all()):
        found = model.decoder(
            input_ids=said[-1][:, None], past_key_values=found.past_key_values, use_cache=True
        )
        said.append(found.logits[:, -1].argmax(1))
        ended |= said[-1] == tokens.end
    return [tokens.text(row) for row in torch.stack(said, dim=1).tolist()]
