"""Tokenizer and text encoder of the pocket model, in the standard CLIP formats."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from engine.training.pocket.captions import write_caption
from engine.training.pocket.drawing import random_spec

MAX_TOKENS = 32
EMBEDDING_WIDTH = 192
START, END = "<|startoftext|>", "<|endoftext|>"


def new_tokenizer(seed: int, merges: int = 700) -> CLIPTokenizer:
    """Train a byte-level BPE tokenizer with ``merges`` merges on captions; it can encode any text."""
    rng = np.random.default_rng(seed)
    texts = [write_caption(random_spec(rng), rng, drop=0.0) for _ in range(20_000)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) * 2 + merges, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    learnt = _read_merges(bpe)
    tokens = alphabet + [c + "</w>" for c in alphabet] + [a + b for a, b in learnt] + [START, END]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=learnt,
        model_max_length=MAX_TOKENS,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
    )


def _read_merges(bpe: Tokenizer) -> list[tuple[str, str]]:
    with TemporaryDirectory() as folder:
        bpe.model.save(folder)
        lines = (Path(folder) / "merges.txt").read_text(encoding="utf-8").splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    return [(p[0], p[1]) for p in pairs if len(p) == 2]


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained CLIP text model of width 192 and two layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=EMBEDDING_WIDTH,
            intermediate_size=EMBEDDING_WIDTH * 3,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=EMBEDDING_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
