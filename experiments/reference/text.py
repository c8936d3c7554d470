"""The text side: a word-level tokenizer over the caption grammar and a very small T5 encoder.

Every token of a trained caption is asked to know the whole caption (``pretrain``), so whatever weights a
cross-attention starts with, the values that it reads already tell digits, colours and directions apart.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as functional
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from fastercache.experiments.reference.data import COLOURS, DIGITS, DIRECTIONS, TEMPLATES, Attributes, combinations

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
MAX_TOKENS = 120


def vocabulary() -> dict[str, int]:
    """Every word of the grammar, after the three special tokens."""
    fillers = {word for template in TEMPLATES for word in template.split() if not word.startswith("{")}
    return {word: index for index, word in enumerate([PAD, EOS, UNK, *sorted(fillers), *DIGITS, *COLOURS, *DIRECTIONS])}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-cases, splits at white space and punctuation, appends the end token."""
    words = vocabulary()
    backend = Tokenizer(models.WordLevel(words, unk_token=UNK))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, words[EOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=EOS, unk_token=UNK, model_max_length=MAX_TOKENS
    )


def settings(width: int) -> dict[str, Any]:
    """Of a T5 or UMT5 encoder: two layers, heads of 32, no dropout."""
    return {
        "vocab_size": len(vocabulary()),
        "d_model": width,
        "d_kv": 32,
        "num_heads": width // 32,
        "d_ff": 2 * width,
        "num_layers": 2,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": 0,
        "eos_token_id": 1,
        "is_encoder_decoder": False,
        "use_cache": False,
    }


def config(width: int = 64) -> T5Config:
    """The settings as a T5 configuration."""
    return T5Config(**settings(width))


def build_encoder(width: int = 64) -> T5EncoderModel:
    """An untrained encoder."""
    return T5EncoderModel(config(width))


class CaptionTable:
    """Token ids of every (template, combination), so that training never tokenises.

    ``ids`` is ``(templates, digits, colours, directions, longest)``; ``lengths`` ``(templates,)`` counts real tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        every = [
            [[[Attributes(d, c, r).caption(template) for r in DIRECTIONS] for c in COLOURS] for d in DIGITS]
            for template in TEMPLATES
        ]
        flat = [caption for a in every for b in a for c in b for caption in c]
        encoded = tokenizer(flat, padding="longest", return_tensors="pt")
        shape = (len(TEMPLATES), len(DIGITS), len(COLOURS), len(DIRECTIONS), -1)
        self.ids: Tensor = encoded.input_ids.view(shape)
        self.lengths: Tensor = encoded.attention_mask.sum(-1).view(shape[:-1])[:, 0, 0, 0]

    def __call__(self, attributes: Tensor, template: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and mask, both ``(B, longest)``, of captions given as ``(B, 3)`` attributes and ``(B,)`` templates."""
        ids = self.ids[template, attributes[:, 0], attributes[:, 1], attributes[:, 2]]
        return ids, (ids != 0).long()


def null_sequence(encoder: nn.Module, length: int, device: torch.device) -> Tensor:
    """The encoding ``(length, D)`` of the empty caption padded to any length.

    Padded positions see only the end token, so all of them are equal and two tokens suffice to know the rest.
    """
    ids = torch.tensor([[1, 0]], device=device)
    output = encoder(input_ids=ids, attention_mask=torch.tensor([[1, 0]], device=device))[0][0]
    return torch.cat([output[:1], output[1:].expand(length - 1, -1)])


def pretrain(
    encoder: nn.Module, table: CaptionTable, *, width: int, steps: int, seed: int, device: torch.device
) -> float:
    """Teach each token of a training caption all three attributes (linear heads, thrown away); returns the accuracy."""
    torch.manual_seed(seed)
    heads = nn.Linear(width, len(DIGITS) + len(COLOURS) + len(DIRECTIONS)).to(device)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01)
    choices = torch.tensor([c.indices() for c in combinations("train")])
    generator = torch.Generator().manual_seed(seed)
    sizes = (len(DIGITS), len(COLOURS), len(DIRECTIONS))
    accuracy = 0.0
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        attributes = choices[torch.randint(len(choices), (64,), generator=generator)]
        template = torch.randint(len(TEMPLATES), (64,), generator=generator)
        ids, mask = (x.to(device) for x in table(attributes, template))
        keep = mask.bool()
        logits = heads(encoder(input_ids=ids, attention_mask=mask)[0])[keep].split(sizes, dim=-1)
        target = attributes.to(device)[:, None].expand(-1, ids.shape[1], -1)[keep]
        loss = sum((functional.cross_entropy(part, target[:, i]) for i, part in enumerate(logits)), torch.zeros(()))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        right = torch.stack([part.argmax(-1) == target[:, i] for i, part in enumerate(logits)]).all(0)
        accuracy = float(right.float().mean())
    return accuracy
