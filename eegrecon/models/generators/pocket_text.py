"""The pocket SDXL's text side: a small CLIP text tower whose words mean something before it is trained.

A tower that learned its words from the titles of some 1,500 drawings would know those words and no other. So its
vocabulary also holds words that are near them in meaning, and every word starts (and stays: the table is frozen) where
the pocket CLIP's text tower puts it, squeezed to the tower's width. The layers above are trained with the UNet.

The layout is that of the SDXL refiner (`text_encoder=None`, `text_encoder_2` a `CLIPTextModelWithProjection`), which
`StableDiffusionXLPipeline.encode_prompt` takes as it is: prompt embeddings from the last layer but one, the pooled
embedding from the projection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
MAX_TOKENS = 16  # begin, "a picture of", up to eleven tokens of a title, end
TEMPLATE = "a picture of {}"  # what captions look like, the pocket captioner's as well


def caption_words(
    titles: Sequence[str], embed: Callable[[Sequence[str]], torch.Tensor], candidates: Sequence[str], extra: int = 6000
) -> list[str]:
    """Choose the words of the vocabulary: those of the titles, then the candidates nearest to any title in meaning.

    Args:
        titles: What captions may name.
        embed: Texts to (n, dim) sentence embeddings.
        candidates: Words to choose from.
        extra: How many of them to take.

    Returns:
        Lower-case words without repetition, sorted.
    """
    own = {word for text in [*titles, TEMPLATE.format("")] for word in re.findall(r"[a-z]+", text.lower())}
    others = sorted({word for word in candidates if re.fullmatch(r"[a-z]{3,}", word)} - own)
    if others and extra:
        normed = torch.nn.functional.normalize
        near = (normed(embed(others), dim=1) @ normed(embed(sorted(set(titles))), dim=1).T).amax(1)
        own.update(others[i] for i in near.topk(min(extra, len(others))).indices.tolist())
    return sorted(own)


def build_tokenizer(words: Iterable[str], max_tokens: int = MAX_TOKENS) -> CLIPTokenizer:
    """Build a CLIP tokenizer (byte-level BPE) in which each given word is one token.

    Args:
        words: Lower-case words; anything else is spelled out in pieces of them, down to single bytes.
        max_tokens: Longest sequence, begin and end included (`model_max_length`).
    """
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges(words)
    tokens = bytes_ + [byte + END_OF_WORD for byte in bytes_] + [first + second for first, second in merges]
    vocab = {token: number for number, token in enumerate([*dict.fromkeys(tokens), BEGIN, END])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_tokens)


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until every word is one symbol (Sennrich et al. 2016, Algorithm 1).

    `tokenizers` learns them as well, but breaks ties by the order of a hash map: another vocabulary in every process,
    and a tower that was trained with one cannot go on with another.

    Args:
        words: ASCII words; each counts once.

    Returns:
        Pairs in the order in which they are merged; of equally frequent ones the first in the alphabet.

    >>> learn_merges(["ab", "abc"])
    [('a', 'b'), ('a', 'b</w>'), ('ab', 'c</w>')]
    """
    import heapq
    from collections import defaultdict

    spelled = [[*word[:-1], word[-1] + END_OF_WORD] for word in sorted(set(words))]
    where: dict[tuple[str, str], set[int]] = defaultdict(set)  # the words that hold a pair, at least once
    for number, symbols in enumerate(spelled):
        for pair in pairwise(symbols):
            where[pair].add(number)
    heap = [(-len(numbers), pair) for pair, numbers in where.items()]
    heapq.heapify(heap)
    merges: list[tuple[str, str]] = []
    while heap:
        count, pair = heapq.heappop(heap)
        now = len(where[pair])
        if now != -count:  # it was counted before some of its words were merged otherwise
            if now:
                heapq.heappush(heap, (-now, pair))
            continue
        merges.append(pair)
        changed = set()
        for number in sorted(where[pair]):
            symbols = spelled[number]
            merged: list[str] = []
            for symbol in symbols:
                if merged and (merged[-1], symbol) == pair:
                    merged[-1] += symbol
                else:
                    merged.append(symbol)
            for old in set(pairwise(symbols)):
                where[old].discard(number)
            for new in set(pairwise(merged)):
                where[new].add(number)
                changed.add(new)
            spelled[number] = merged
        for new in sorted(changed):
            heapq.heappush(heap, (-len(where[new]), new))
    return merges


def word_table(
    tokenizer: CLIPTokenizer,
    words: Sequence[str],
    embed: Callable[[Sequence[str]], torch.Tensor],
    width: int = 64,
) -> torch.Tensor:
    """Return a starting vector for each token: its word's embedding on the leading principal axes, unit variance.

    Args:
        tokenizer: From :func:`build_tokenizer`.
        words: The words it was built from; a token that spells one, at a word's end or before, gets its vector.
        embed: Texts to (n, dim) embeddings, dim >= width.
        width: Width of the tower.

    Returns:
        (n_tokens, width) float32; tokens that are no whole word get zeros.
    """
    vocab = tokenizer.get_vocab()
    embeds = embed([TEMPLATE.format(word) for word in words]).float()
    embeds = embeds - embeds.mean(0)
    axes = torch.linalg.eigh(torch.cov(embeds.T)).eigenvectors.flip(1)[:, :width]
    rows = embeds @ axes
    rows = rows / rows.std()
    table = torch.zeros(len(vocab), width)
    for word, row in zip(words, rows, strict=True):
        for token in (word, word + END_OF_WORD):
            if token in vocab and (len(word) > 1 or token.endswith(END_OF_WORD)):
                table[vocab[token]] = row
    return table


def build_text_encoder(
    tokenizer: CLIPTokenizer, width: int = 64, pooled_dim: int = 64, layers: int = 4, table: torch.Tensor | None = None
) -> CLIPTextModelWithProjection:
    """Build the text tower: `CLIPTextModelWithProjection` as SDXL's second, small.

    Args:
        tokenizer: Whose tokens it reads.
        width: Width of a token, the UNet's `cross_attention_dim`.
        pooled_dim: Width of the pooled embedding, what the UNet's `text_time` conditioning takes.
        layers: Transformer layers; prompt embeddings come from the last but one.
        table: (n_tokens, width) word vectors, which are then frozen, or None for random ones that are trained.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    vocab = tokenizer.get_vocab()
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=pooled_dim,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=vocab[BEGIN],
        eos_token_id=vocab[END],
        pad_token_id=vocab[END],
    )
    encoder = CLIPTextModelWithProjection(config)
    if table is not None:
        words = encoder.get_input_embeddings()
        with torch.no_grad():
            # The begin and end marks keep a random vector: they are no words, but attention rests on them.
            known = table.abs().sum(1) > 0
            words.weight[known] = table[known]
        words.requires_grad_(False)
    return encoder


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Return token ids (n, max_tokens), padded and truncated as `encode_prompt` does it."""
    return tokenizer(
        list(texts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
