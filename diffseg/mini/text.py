"""What reads captions: the tokenizer, made from them, and the untrained text encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffseg.mini import checkpoints


def train_tokenizer(folder: Path, captions: list[str]) -> CLIPTokenizer:
    """A byte-pair tokenizer in CLIP's format: whole words of the captions, pieces or bytes for all other text.

    The same captions give the same tokenizer, in any process.
    """
    # Byte pairs of the captions' words
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    endings = [b + "</w>" for b in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=1400,
        # Among pairs that are equally frequent the smaller numbers are merged first. The trainer would number the bytes
        # that end a word in the order of its hash table, which differs from process to process.
        special_tokens=["<|startoftext|>", "<|endoftext|>", *endings],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    trained = json.loads(bpe.to_str())["model"]

    # CLIP's own order: bytes, bytes that end a word, merges, the two special tokens.
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in trained["merges"]]
    words = alphabet + endings
    words += list(dict.fromkeys("".join(m) for m in merges if "".join(m) not in set(words)))
    words += ["<|startoftext|>", "<|endoftext|>"]

    # The files of CLIP's tokenizer
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.write(folder / "vocab.json", json.dumps({w: i for i, w in enumerate(words)}, ensure_ascii=False))
    checkpoints.write(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    tokenizer.save_pretrained(folder)
    return tokenizer


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> np.ndarray:
    """int64 [count, 77]: start, tokens, then the end token up to the full length."""
    return np.array(tokenizer(captions, padding="max_length", max_length=77, truncation=True).input_ids)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained text encoder: CLIP's, two layers of width 64."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
