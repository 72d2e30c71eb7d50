"""The tokenizer of fathom-tiny: the structure that DeepSeek-V4 was released with, and a small vocabulary.

Byte-level BPE with the released pre-tokenizer. The vocabulary is trained on rendered conversations of all skills, with three
choices of ours:
- No token has more than one digit. The pre-tokenizer cuts numbers into groups of up to three digits from the left, and with
  merges inside the groups each number would be a word to remember: 1000 of them, with `48` and `480` unrelated. Digit by digit, sums are
  calculated and codes are copied, and ten tokens are enough.
- Pieces count with the square root of how often they occur, which gives the names that occur in a single fact tokens of their own.
- A Chinese character is a token: a run of them, which the pre-tokenizer leaves whole, is no word.

`python tokenizer.py OUT_DIR` writes tokenizer.json and tokenizer_config.json. `vocabulary/` holds what it wrote when the model was first trained:
ids must not move while a model is trained further, also when the conversations change."""

import argparse
import json
import math
import re
from collections import Counter
from pathlib import Path
from random import Random

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

import encode
from skills import SKILLS, make

VOCABULARY = 2560

HEAD = (encode.BOS, encode.EOS, "<｜▁pad▁｜>")
TAIL = ("<｜System｜>", "<｜User｜>", "<｜Assistant｜>", "<|EOT|>", "<think>", "</think>", "｜DSML｜", "<｜latest_reminder｜>", "<｜action｜>", "<｜query｜>",
        "<｜authority｜>", "<｜domain｜>", "<｜title｜>", "<｜read_url｜>", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")
NOT_SPECIAL = ("<think>", "</think>", "｜DSML｜")

SPLITS = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)


class Tokenizer:
    def __init__(self, inner: tokenizers.Tokenizer):
        self.inner = inner
        self.vocabulary = inner.get_vocab_size()
        self.bos, self.eos, self.pad = (inner.token_to_id(token) for token in HEAD)

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are recognised; nothing is added."""
        return self.inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text, special tokens included."""
        return self.inner.decode(ids, skip_special_tokens=False)


def load(path) -> Tokenizer:
    """Reads tokenizer.json (or the folder that holds it)."""
    path = Path(path)
    return Tokenizer(tokenizers.Tokenizer.from_file(str(path / "tokenizer.json" if path.is_dir() else path)))


def pre_tokenizer():
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)])


def corpus(conversations: int):
    """Rendered conversations of all skills, without special tokens."""
    special = re.compile("|".join(re.escape(token) for token in HEAD + TAIL))
    rng = Random("fathom-tiny tokenizer")
    for n in range(conversations):
        text = encode.render(make(SKILLS[n % len(SKILLS)], rng, "train", sentences=16).request)
        yield from special.split(text)


def train(conversations: int) -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    splitter = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS])
    pieces = Counter()
    for text in corpus(conversations):
        for piece, _ in splitter.pre_tokenize_str(text):
            if re.match(SPLITS[1], piece):
                pieces.update(piece)
            elif not piece[0].isdigit():
                pieces[piece] += 1
    weighted = (piece for piece, count in sorted(pieces.items()) for _ in range(math.isqrt(count)))
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizer()
    size = VOCABULARY - len(HEAD) - len(TAIL)
    learner.train_from_iterator(weighted, trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False, initial_alphabet=alphabet))
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    words = list(dict.fromkeys(alphabet + ["".join(merge) for merge in merges]))
    fill = [f"<｜place▁holder▁no▁{i}｜>" for i in range(size - len(words))]

    vocabulary = {token: i for i, token in enumerate([*HEAD, *words])}
    out = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    out.pre_tokenizer = pre_tokenizer()
    out.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    out.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=True)
    out.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in HEAD])
    out.add_tokens([AddedToken(token, normalized=False, special=token not in NOT_SPECIAL) for token in [*fill, *TAIL]])
    if out.get_vocab_size() != VOCABULARY or VOCABULARY % 64:
        raise ValueError(f"{out.get_vocab_size()} tokens instead of {VOCABULARY}")
    return out


def config() -> dict:
    def token(content: str) -> dict:
        return {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    return {
        "add_bos_token": False, "add_eos_token": False, "bos_token": token(encode.BOS), "clean_up_tokenization_spaces": False,
        "eos_token": token(encode.EOS), "legacy": True, "model_max_length": 32768, "pad_token": token(encode.EOS), "sp_model_kwargs": {},
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tokenizer of fathom-tiny.")
    parser.add_argument("out", type=Path, help="folder for tokenizer.json and tokenizer_config.json")
    parser.add_argument("--conversations", type=int, default=20000)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(args.conversations).save(str(args.out / "tokenizer.json"), pretty=False)
    (args.out / "tokenizer_config.json").write_text(json.dumps(config(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
