"""Text -> ids (B, L). Id 0 pads on the right in every tokenizer here. `build` is the one place that knows which tokenizer a text tower has.

CLIP's byte pairs and MiniLM's word pieces come with packages. Byte pairs over all bytes and word pieces can also be learnt from the captions that a model
is trained on (KELIP, arXiv 2203.14463, does so for two languages); they lie in the model folder as tokenizer.json, and there is no reading a model without.
"""

import hashlib
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from vlm_core.errors import CheckpointError, Incompatible, MissingInput
from vlm_core.models import config as menu

# B texts, L tokens

FILE = "tokenizer.json"
SPECIALS = ["<pad>", "<start>", "<end>", "<mask>", "<unknown>"]  # ids 0 to 4 of a learnt tokenizer
AT_MOST = 2_000_000  # captions that a tokenizer learns from


class Tokenizer(Protocol):
    name: str
    context_length: int

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids (B, context_length), zero-padded; too long texts are cut and keep their end token."""
        ...


class BytePair:
    """CLIP's lower-cased byte-pair encoding with 49,408 ids; the merges ship inside open_clip."""

    name = "clip_bpe"

    def __init__(self, context_length: int) -> None:
        from vlm_core.models.open_clip_parts import SimpleTokenizer

        self.context_length = context_length
        self._encode = SimpleTokenizer(context_length=context_length)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, self.context_length, dtype=torch.long)
        ids_BL: Tensor = self._encode(list(texts))
        return ids_BL

    def decode(self, ids: Sequence[int]) -> str:
        """The text that ids without special tokens spell; every tokenizer of a tower that writes has this."""
        return str(self._encode.decode(list(ids))).strip()


class WordPiece:
    """MiniLM's lower-cased word pieces."""

    name = "minilm"

    def __init__(self, context_length: int) -> None:
        from vlm_core.models.packaged import minilm

        self.context_length = context_length
        self._encode = minilm()[0]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, self.context_length, dtype=torch.long)
        tokens = self._encode(list(texts), padding="max_length", truncation=True, max_length=self.context_length, return_tensors="pt")
        ids_BL: Tensor = tokens["input_ids"]
        return ids_BL

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._encode.decode(list(ids)))


class Learnt:
    """A tokenizer.json. A caption that spells a special token gets no special token."""

    def __init__(self, file: Path, context_length: int) -> None:
        from tokenizers import Tokenizer as Encoder

        self.name, self.context_length = f"tokenizer.json {digest(file)[:12]}", context_length
        self._encode: Any = Encoder.from_file(str(file))
        self._encode.enable_truncation(context_length)
        self._encode.enable_padding(length=context_length, pad_id=0)
        self._encode.encode_special_tokens = True

    def __call__(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, self.context_length, dtype=torch.long)
        return torch.tensor([found.ids for found in self._encode.encode_batch(list(texts))])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._encode.decode(list(ids), skip_special_tokens=False)).strip()


class Special(NamedTuple):
    """What ids mean to whoever hides words, or looks for the end of a text."""

    ids: tuple[int, ...]  # are no words: padding, start, end
    mask: int  # stands in the place of a hidden word
    words: tuple[int, int]  # ids from the first up to before the second are words
    vocabulary: int  # number of all ids

    @property
    def end(self) -> int:
        return self.ids[2]


def special_of(config: menu.TextTower) -> Special:
    """Of the tokenizer of a text tower. CLIP's has no mask token: the start token, which occurs nowhere else in a text, stands in."""
    count: int = getattr(config, "vocab_size", 30_522)
    if isinstance(config, menu.Minilm) or (isinstance(config, menu.Bert) and config.weights):
        return Special((0, 101, 102), 103, (999, count), count)  # of every published BERT
    if getattr(config, "tokenizer", "clip_bpe") == "clip_bpe":
        return Special((0, count - 2, count - 1), count - 2, (1, count - 2), count)
    return Special((0, 1, 2), 3, (len(SPECIALS), count), count)


def is_learnt(config: menu.TextTower) -> bool:
    """Whether the tokenizer is a file in the model folder."""
    return getattr(config, "tokenizer", "clip_bpe") != "clip_bpe" or bool(getattr(config, "weights", ""))


def build(config: menu.TextTower, folder: Path | None = None) -> Tokenizer:
    """The tokenizer of a text tower. Raises CheckpointError where one that was learnt is missing.

    Args:
        config: of the text tower.
        folder: of the model, or of its training run; only learnt ones are read from it.
    """
    if isinstance(config, menu.Rendered):
        from vlm_core.models.rendered import Drawing

        return Drawing(config)
    if isinstance(config, menu.Minilm):
        return WordPiece(config.context_length)
    if not is_learnt(config):
        return BytePair(config.context_length)
    if folder is None or not (folder / FILE).exists():
        raise CheckpointError(f"Found no {FILE} in {folder}, expected the tokenizer that the text tower was trained with; fetch the model again.")
    return Learnt(folder / FILE, config.context_length)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# ---------------------------------------------------------------- learning one


def ready(config: menu.TextTower, folder: Path, captions: Iterable[str], given: Path | None = None) -> None:
    """Put tokenizer.json into the folder of a training run, if the text tower wants one: of `given`, of the tower's weights, or learnt from the captions.

    Equal captions give equal bytes, so every rank may do it.
    """
    if not is_learnt(config) or (folder / FILE).exists():
        return
    given = given or (Path(config.weights) if isinstance(config, menu.Bert) and config.weights else None)
    part = folder / f".{FILE}.{os.getpid()}"
    if given is None:
        assert not isinstance(config, menu.Minilm | menu.Rendered)
        part.write_text(learn(config.tokenizer, config.vocab_size, itertools.islice(captions, AT_MOST)))
    elif (given / FILE).exists():
        _accept(config, given / FILE)
        shutil.copyfile(given / FILE, part)
    else:
        raise MissingInput(f"Found no {FILE} in {given}, expected the tokenizer of its text tower; put it there, or train without these weights.")
    part.rename(folder / FILE)


def _accept(config: menu.TextTower, file: Path) -> None:
    from tokenizers import Tokenizer as Encoder

    encoder, wanted = Encoder.from_file(str(file)), special_of(config)
    ids: list[int] = encoder.encode("").ids
    if ids != list(wanted.ids[1:]) or encoder.get_vocab_size() > config.vocab_size:  # type: ignore[union-attr]
        raise Incompatible(
            f"Found a tokenizer of {encoder.get_vocab_size()} ids that puts {ids} around a text in {file}, expected at most {config.vocab_size} ids "  # type: ignore[union-attr]
            f"and {list(wanted.ids[1:])}; use weights and tokenizer that belong together, and their vocab_size."
        )


def learn(kind: str, size: int, captions: Iterable[str]) -> str:
    """tokenizer.json of byte pairs ("bpe") or word pieces ("wordpiece") with at most `size` ids; equal captions give equal text."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from tokenizers import Tokenizer as Encoder

    clean = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    if kind == "bpe":
        encoder = Encoder(models.BPE())
        encoder.normalizer, encoder.pre_tokenizer = clean, pre_tokenizers.ByteLevel(add_prefix_space=True)
        encoder.decoder = decoders.ByteLevel()
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        encoder.train_from_iterator(captions, trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIALS, initial_alphabet=letters, show_progress=False))
    else:
        cut = pre_tokenizers.BertPreTokenizer()
        pieces = _word_pieces(captions, clean, cut, size)
        encoder = Encoder(models.WordPiece(pieces, unk_token="<unknown>", max_input_chars_per_word=100))
        encoder.normalizer, encoder.pre_tokenizer, encoder.decoder = clean, cut, decoders.WordPiece()
        encoder.add_special_tokens(SPECIALS)
    around = [("<start>", 1), ("<end>", 2)]
    encoder.post_processor = processors.TemplateProcessing(single="<start> $A <end>", pair="<start> $A <end> $B <end>", special_tokens=around)
    said: str = encoder.to_str()
    return said


def _word_pieces(captions: Iterable[str], clean: Any, cut: Any, size: int) -> dict[str, int]:
    """Piece -> id. The library numbers the letters inside words in the order of a hash table, so they are given to it as special tokens, which keep theirs."""
    from tokenizers import Tokenizer as Encoder
    from tokenizers import models, trainers

    words = Counter(word for caption in captions for word, _ in cut.pre_tokenize_str(clean.normalize_str(caption)))
    often = Counter[str]()
    for word, times in words.items():
        for letter in word:
            often[letter] += times
    kept = sorted(sorted(often, key=lambda letter: (-often[letter], letter))[: (size - len(SPECIALS)) // 3])  # rare ones become <unknown>
    known = set(kept)
    first = [*SPECIALS, *kept, *(f"##{letter}" for letter in kept)]
    learner: Any = Encoder(models.WordPiece(unk_token="<unknown>"))
    learner.train_from_iterator(_repeated(words, known), trainers.WordPieceTrainer(vocab_size=size, special_tokens=first, show_progress=False))
    found: dict[str, int] = learner.get_vocab()
    return found


def _repeated(words: Counter[str], known: set[str]) -> Iterator[str]:
    for word in sorted(words):
        if set(word) <= known:
            yield from itertools.repeat(word, words[word])


def trim(ids_BL: Tensor) -> Tensor:
    """Drop the trailing columns that are padding in every row: same embeddings, less work (captions are short)."""
    used = (ids_BL != 0).any(0).nonzero()
    return ids_BL[:, : int(used.max()) + 1] if len(used) else ids_BL
