"""A word-level tokenizer and a one-layer T5, so that prompts in words work on a random pipeline."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

WORDS = [
    "a",
    "an",
    "the",
    "red",
    "green",
    "blue",
    "yellow",
    "white",
    "cyan",
    "magenta",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "zero",
    "moving",
    "going",
    "left",
    "right",
    "up",
    "down",
    "video",
    "of",
    "digit",
]


@lru_cache(maxsize=1)
def _vocabulary() -> dict[str, int]:
    return {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}


def tokenizer() -> Any:
    """A tokenizer of the few words above; every other word is unknown to it."""
    base = Tokenizer(WordLevel(_vocabulary(), unk_token="<unk>"))
    base.pre_tokenizer = Whitespace()
    base.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=base, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=120
    )


def encoder(width: int) -> T5EncoderModel:
    """A random T5 encoder whose embeddings have this width."""
    config = T5Config(
        vocab_size=len(_vocabulary()),
        d_model=width,
        d_kv=4,
        d_ff=2 * width,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
    )
    return T5EncoderModel(config).eval()
