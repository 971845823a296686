"""The multimodal decoder and its tokenizer: losses, seeds, local folders, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.evaluation.downstream.model import MultimodalDecoder, Tokens, make_decoder, make_model
from pipeline.evaluation.downstream.samples import Sample
from pipeline.evaluation.downstream.settings import DecoderSettings
from pipeline.evaluation.downstream.training import Encoded, _padded, encode
from tests.evaluation.downstream.samples import (
    DIMENSION,
    LLAMA,
    TEXTS,
    tiny_model,
    tiny_settings,
)


@pytest.mark.parametrize(
    "text",
    ["red", "naïve café 猫 🙂", "a , b don 't .", "it says <end> and <pad>", "tab\tline\nend"],
)
def test_an_answer_is_read_back_as_it_was(text: str):
    tokens = Tokens.learnt(TEXTS, 300)
    ids = tokens.answer(text)
    assert ids[-1] == tokens.end
    assert ids.count(tokens.end) == 1
    assert tokens.pad not in ids
    assert tokens.text(ids) == text
    assert tokens.text([*ids, *tokens.answer("junk")]) == text  # nothing after the end
    assert max(ids) < tokens.size


def test_a_vocabulary_is_learnt_from_the_texts_and_always_the_same():
    one, same = Tokens.learnt(TEXTS, 320), Tokens.learnt(TEXTS, 320)
    assert [one.answer(text) for text in TEXTS] == [same.answer(text) for text in TEXTS]
    assert one.size == same.size <= 320
    assert len(one.answer("purple")) == 2  # a word and its end
    assert len(Tokens.learnt(["x"], 320).answer("purple")) > 4


def test_a_vocabulary_has_the_size_that_is_asked_for():
    texts = [f"word{number} of many" for number in range(200)]
    assert Tokens.learnt(texts, 350).size == 350
    assert Tokens.learnt(texts, 400).size == 400


def weights(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict())


def test_equal_seeds_make_equal_models_and_others_make_others():
    first, _ = tiny_model(seed=3)
    torch.manual_seed(99)  # what happened before does not matter
    again, other = tiny_model(seed=3)[0], tiny_model(seed=4)[0]
    for name, tensor in weights(first).items():
        assert torch.equal(tensor, weights(again)[name]), name
    for part in ("projector.0.weight", "decoder.lm_head.weight"):
        assert not torch.equal(weights(first)[part], weights(other)[part])


def test_making_a_model_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tiny_model()
    assert torch.equal(torch.rand(3), expected)


def batch(tokens: Tokens) -> list[Encoded]:
    samples = [
        Sample(0, "colour", "what colour is it?", "red"),
        Sample(1, "captioning", "a", "a purple picture of a blue picture"),
        Sample(2, "presence", "is it yellow, or what colour is it? tell it.", "no"),
    ]
    return encode(samples, tokens)


def rows() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, DIMENSION, generator=generator)
    return drawn / drawn.norm(dim=1, keepdim=True)


def plain_loss(model: MultimodalDecoder, samples: list[Encoded], embeddings: Tensor) -> Tensor:
    """Return the mean over all answers' tokens, sample by sample, of all logits and no padding."""
    total, count = torch.zeros(()), 0
    for row, sample in enumerate(samples):
        ids = torch.tensor([sample.tokens])
        logits = model.decoder(inputs_embeds=model.inputs(embeddings[row : row + 1], ids)).logits
        chances = logits[0].log_softmax(1)
        for place in range(sample.prompt, len(sample.tokens)):
            position = model.visual_tokens + place - 1
            total = total - chances[position, sample.tokens[place]]
            count += 1
    return total / count


class AllLogits(nn.Module):
    """A decoder that cannot be told which logits to keep."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def get_input_embeddings(self) -> Any:
        return self.decoder.get_input_embeddings()

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None) -> Any:
        return self.decoder(input_ids=input_ids, inputs_embeds=inputs_embeds)


@pytest.mark.parametrize("keeps", [True, False])
def test_the_loss_is_the_mean_over_the_tokens_of_answers(keeps: bool):
    model, tokens = tiny_model()
    samples, embeddings = batch(tokens), rows()
    expected = plain_loss(model, samples, embeddings)
    if not keeps:
        wrapped = MultimodalDecoder(AllLogits(model.decoder), DIMENSION, 16, 2)
        wrapped.projector.load_state_dict(model.projector.state_dict())
        model = wrapped
    assert model._keeps_logits == keeps
    ids, labels = _padded(samples, tokens.pad)
    torch.testing.assert_close(model.loss(embeddings, ids, labels), expected)
    # What stands in the padding is not seen, and prompts are not learnt.
    for other in (tokens.end, 7):
        torch.testing.assert_close(
            model.loss(embeddings, *_padded(samples, other)), expected, rtol=1e-6, atol=1e-6
        )
    wider = nn.functional.pad(ids, (0, 5), value=tokens.pad)
    torch.testing.assert_close(
        model.loss(embeddings, wider, nn.functional.pad(labels, (0, 5), value=-100)), expected
    )
    assert not torch.allclose(model.loss(embeddings.roll(1, 0), ids, labels), expected)


def test_the_loss_of_text_alone_is_that_of_the_decoder():
    model, tokens = tiny_model()
    (sample,) = batch(tokens)[:1]
    ids = torch.tensor([sample.tokens])
    expected = model.decoder(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(model.loss(None, ids, ids.clone()), expected)


def test_gradients_reach_the_projector_through_a_frozen_decoder():
    model, tokens = tiny_model()
    model.decoder.requires_grad_(False)
    model.loss(rows(), *_padded(batch(tokens), tokens.pad)).backward()
    for name, parameter in model.projector.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name
    assert all(parameter.grad is None for parameter in model.decoder.parameters())


def test_visual_tokens_have_the_shape_of_the_decoder():
    model, tokens = tiny_model(tiny_settings(visual_tokens=3))
    assert model.visual(rows()).shape == (3, 3, LLAMA["hidden_size"])
    ids = torch.tensor([tokens.prompt("it")] * 3)
    assert model.inputs(rows(), ids).shape == (3, 3 + ids.shape[1], LLAMA["hidden_size"])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "nonsense"}, "nonsense"),
        ({"model_type": "clip"}, "CLIPConfig"),
        ({**LLAMA, "hidden_size": "wide"}, "hidden_size"),
        ({**LLAMA, "num_attention_heads": 5}, "attention heads"),
        ({**LLAMA, "hidden_act": "none-such"}, "none-such"),
        ({**LLAMA, "hiden_size": 32}, "llama has no field hiden_size"),
    ],
)
def test_a_config_that_makes_no_decoder_is_refused(config: dict[str, Any], said: str):
    settings = DecoderSettings(config=config)
    with pytest.raises(ValueError, match=r"downstream\.decoder\.config.*" + said) as caught:
        make_decoder(settings, TEXTS, 0)
    assert "\n" not in str(caught.value)


def saved(folder: Path, **changes: Any) -> Path:
    """Write a random decoder and its tokenizer as transformers does."""
    decoder, tokens = make_decoder(DecoderSettings(config={**LLAMA, **changes}), TEXTS, 8)
    decoder.save_pretrained(folder)
    tokens._tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path) -> tuple[Any, Tokens]:
    return make_decoder(DecoderSettings(path=str(folder)), [], 0)


@pytest.mark.parametrize("tied", [True, False])
def test_a_local_decoder_is_loaded_with_its_tokenizer(tmp_path: Path, tied: bool):
    folder = saved(tmp_path / "decoder", tie_word_embeddings=tied)
    decoder, tokens = load(folder)
    expected, learnt = make_decoder(
        DecoderSettings(config={**LLAMA, "tie_word_embeddings": tied}), TEXTS, 8
    )
    for name, tensor in expected.state_dict().items():
        assert torch.equal(decoder.state_dict()[name], tensor), name
    assert tokens.answer("a purple naïve 🙂") == learnt.answer("a purple naïve 🙂")
    assert (tokens.end, tokens.pad, tokens.size) == (learnt.end, learnt.pad, learnt.size)
    model = make_model(tiny_settings(), decoder, DIMENSION, 0)
    assert torch.isfinite(model.loss(rows(), *_padded(batch(tokens), tokens.pad)))


def test_a_local_decoder_of_half_precision_is_trained_in_float32(tmp_path: Path):
    folder = saved(tmp_path / "decoder")
    decoder, _ = load(folder)
    decoder.to(torch.bfloat16).save_pretrained(folder)
    assert {parameter.dtype for parameter in load(folder)[0].parameters()} == {torch.float32}


def refused(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.startswith("downstream.decoder.path")
    assert str(folder) in message
    assert "\n" not in message
    return message


class Payload:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_pickled_weights_are_refused_unopened(tmp_path: Path):
    folder = saved(tmp_path / "decoder")
    decoder, _ = load(folder)
    (folder / "model.safetensors").unlink()
    torch.save(decoder.state_dict(), folder / "pytorch_model.bin")
    assert "safetensors" in refused(folder)  # however harmless
    trace = tmp_path / "ran"
    torch.save({"weights": Payload(trace)}, folder / "pytorch_model.bin")
    assert "safetensors" in refused(folder)
    assert not trace.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert trace.exists()  # it would have run


def test_code_of_a_folder_is_neither_run_nor_asked_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    folder = saved(tmp_path / "decoder")
    trace = tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "theirs.py").write_text(f"open({str(trace)!r}, 'w')\nclass Config: pass\n")

    def consent(prompt: str = "") -> str:
        print(prompt)
        return "y"

    monkeypatch.setattr("builtins.input", consent)
    assert "code" in refused(folder)
    assert not trace.exists()
    assert "custom code" not in capsys.readouterr().out


def changed(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path):
    assert "no folder" in refused(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty")
    torn = saved(tmp_path / "torn")
    weights_file = torn / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-50])
    refused(torn)
    broken = saved(tmp_path / "broken")
    (broken / "config.json").write_text("{")
    refused(broken)
    wordless = saved(tmp_path / "wordless")
    (wordless / "tokenizer.json").write_text('{"model": {"type": "none"}}')
    refused(wordless)
    deeper = saved(tmp_path / "deeper")
    changed(deeper, num_hidden_layers=2)  # transformers would draw the second layer
    assert "lack 9 tensors of a LlamaForCausalLM" in refused(deeper)
    wider = saved(tmp_path / "wider")
    changed(wider, intermediate_size=64)
    refused(wider)


def test_a_tokenizer_that_does_not_fit_its_model_is_refused(tmp_path: Path):
    folder = saved(tmp_path / "decoder")
    larger = Tokens.learnt([f"word{number} of many" for number in range(200)], 400)
    larger._tokenizer.save_pretrained(folder)
    assert "has 400 tokens" in refused(folder)
    endless = saved(tmp_path / "endless")
    path = endless / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": None}))
    assert "no end token" in refused(endless)


def test_a_model_that_sees_what_follows_is_refused():
    config = {
        "model_type": "bert",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    with pytest.raises(ValueError, match=r"bert\) sees the tokens that follow"):
        make_decoder(DecoderSettings(config=config), ["a red circle"], 0)
