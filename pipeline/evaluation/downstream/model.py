"""A small multimodal LM: a causal decoder that reads an embedding as visual tokens."""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.align.training import seed_of
from pipeline.evaluation.downstream.settings import DecoderSettings, DownstreamSettings

_PAD, _START, _END, _UNKNOWN = "<pad>", "<start>", "<end>", "<unknown>"


class MultimodalDecoder(nn.Module):
    """A decoder whose input begins with visual tokens: a two-layer GELU projector makes them.

    The projector takes an embedding (n, d) to (n, visual_tokens, hidden size).
    """

    def __init__(self, decoder: Any, dimension: int, width: int, visual_tokens: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.hidden = int(decoder.get_input_embeddings().weight.shape[1])
        self.visual_tokens = visual_tokens
        self._keeps_logits = "logits_to_keep" in inspect.signature(decoder.forward).parameters
        self.projector = nn.Sequential(
            nn.Linear(dimension, width), nn.GELU(), nn.Linear(width, visual_tokens * self.hidden)
        )

    @property
    def device(self) -> torch.device:
        """Where its weights are, and where inputs have to be."""
        return next(self.parameters()).device

    def visual(self, embeddings: Tensor) -> Tensor:
        """Return the visual tokens (n, visual_tokens, hidden size) of embeddings (n, d)."""
        # Unit rows have coordinates of 1 / sqrt(d); layers start out for coordinates of 1.
        scaled = embeddings * math.sqrt(embeddings.shape[1])
        return self.projector(scaled).view(-1, self.visual_tokens, self.hidden)

    def inputs(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Return visual tokens of (n, d) followed by those of text (n, t)."""
        text = self.decoder.get_input_embeddings()(tokens)
        return torch.cat([self.visual(embeddings).to(text.dtype), text], dim=1)

    def loss(self, embeddings: Tensor | None, tokens: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of the next token where `labels` (n, t) are not -100.

        Rows are padded on the right, which a causal decoder does not see; without embeddings the
        decoder reads text alone.
        """
        if embeddings is None:
            before, labels = 0, labels[:, 1:]
            inputs = {"input_ids": tokens[:, :-1]}
        else:
            before = self.visual_tokens - 1  # the last visual token predicts the first of the text
            inputs = {"inputs_embeds": self.inputs(embeddings, tokens)[:, :-1]}
        first = int((labels != -100).any(0).nonzero()[0])
        labels = labels[:, first:]
        if (
            self._keeps_logits
        ):  # prompts are most of a batch of questions, the head most of its cost
            logits = self.decoder(**inputs, logits_to_keep=labels.shape[1]).logits
        else:
            logits = self.decoder(**inputs).logits[:, before + first :]
        return nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1), ignore_index=-100
        )


class Tokens:
    """A tokenizer: prompts and answers to ids and back."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.end = int(tokenizer.eos_token_id)
        pad = tokenizer.pad_token_id
        self.pad = self.end if pad is None else int(pad)

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self._tokenizer)

    @classmethod
    def learnt(cls, texts: Sequence[str], vocabulary: int) -> Tokens:
        """Learn a byte-level BPE vocabulary from texts; the same texts give the same one."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        tokenizer = Tokenizer(models.BPE(unk_token=_UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[_PAD, _START, _END, _UNKNOWN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(
            PreTrainedTokenizerFast(
                tokenizer_object=tokenizer,
                pad_token=_PAD,
                bos_token=_START,
                eos_token=_END,
                unk_token=_UNKNOWN,
            )
        )

    def prompt(self, text: str) -> list[int]:
        """Return the ids of a prompt."""
        return self._ids(text)

    def answer(self, text: str) -> list[int]:
        """Return the ids of an answer, its end included."""
        return [*self._ids(" " + text), self.end]

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of an answer's ids, up to its end."""
        kept = list(tokens)
        if self.end in kept:
            kept = kept[: kept.index(self.end)]
        found = self._tokenizer.decode(
            kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(found).strip()

    def _ids(self, text: str) -> list[int]:
        # A caption that spells a special token means the letters.
        return list(
            self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        )


def make_decoder(settings: DecoderSettings, texts: Sequence[str], seed: int) -> tuple[Any, Tokens]:
    """Return a decoder and its tokenizer: from a local folder, or a random one from its config.

    Raises:
        ValueError: if the folder holds no causal LM in safetensors, or the config is none.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    if settings.path is not None:
        return _local_decoder(settings.path)
    tokens = Tokens.learnt(texts, settings.vocabulary)
    values = dict(settings.config)
    kind = values.pop("model_type")
    special = {"pad_token_id": tokens.pad, "eos_token_id": tokens.end, "bos_token_id": tokens.end}
    try:
        # transformers takes any field, and would leave a misspelt one unread.
        known = AutoConfig.for_model(kind)
        unknown = [name for name in values if not hasattr(known, name)]
        if unknown:
            raise ValueError(f"{kind} has no field {', '.join(unknown)}")
        config = AutoConfig.for_model(kind, **{**values, **special, "vocab_size": tokens.size})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "decoder"))
            decoder = AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, KeyError, RuntimeError, StrictDataclassError) as error:
        raise ValueError(
            f"downstream.decoder.config makes no causal LM of transformers: {_line(error)}"
        ) from error
    _check_causal(decoder, f"downstream.decoder.config ({kind})")
    return decoder, tokens


@torch.inference_mode()
def _check_causal(decoder: Any, what: str) -> None:
    """Raise ValueError for a model that sees what follows, and would read its own answers."""
    first, second = torch.tensor([[5, 6]]), torch.tensor([[5, 7]])
    one, other = (decoder.eval()(input_ids=ids).logits[:, 0] for ids in (first, second))
    if not torch.allclose(one, other, atol=1e-4):
        raise ValueError(f"{what} sees the tokens that follow; a decoder has to be causal")


def _local_decoder(path: str) -> tuple[Any, Tokens]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not Path(path).is_dir():
        raise ValueError(f"downstream.decoder.path is {path}, which is no folder of a causal LM")
    try:
        # Unless told not to, transformers asks on the terminal whether to run a folder's code.
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        decoder, loading = AutoModelForCausalLM.from_pretrained(
            path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # readers of weights and vocabularies raise their own kinds
        raise ValueError(
            f"downstream.decoder.path: {path} holds no causal LM with a tokenizer, in "
            f"safetensors: {_line(error)}"
        ) from error
    if loading["missing_keys"]:  # transformers would draw them, unseeded
        raise ValueError(
            f"downstream.decoder.path: the weights in {path} lack "
            f"{len(loading['missing_keys'])} tensors of a {type(decoder).__name__}, such as "
            f"{min(loading['missing_keys'])}"
        )
    rows = decoder.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"downstream.decoder.path: the tokenizer in {path} has {len(tokenizer)} tokens, its "
            f"model {rows}"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(f"downstream.decoder.path: the tokenizer in {path} has no end token")
    _check_causal(decoder, f"downstream.decoder.path: the model in {path}")
    return decoder, Tokens(tokenizer)


def _line(error: Exception) -> str:
    return textwrap.shorten(str(error), 200, placeholder=" …")


def make_model(
    settings: DownstreamSettings, decoder: Any, dimension: int, seed: int
) -> MultimodalDecoder:
    """Return a model with a fresh projector, seeded, before a decoder; on a GPU if trials have one.

    Raises:
        ValueError: if a GPU is asked for and there is none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "projector"))
        model = MultimodalDecoder(
            decoder, dimension, settings.projector_width, settings.visual_tokens
        )
    if not settings.gpus_per_trial:
        return model
    if not torch.cuda.is_available():
        raise ValueError(
            f"downstream.gpus_per_trial is {settings.gpus_per_trial:g}, but no GPU can be used here"
        )
    return model.to("cuda")
