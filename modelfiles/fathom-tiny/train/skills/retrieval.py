"""A code for each of several doors, boxes, ... in a filler text, asked for at the end.

The grammar (filler, keys, wordings) is `../../needle.json`, so that other programs can build the same texts."""

import json
from pathlib import Path
from random import Random

from .conversation import HELDOUT, TRAIN, Conversation, assistant, is_held_out, request, user

GRAMMAR = json.loads((Path(__file__).resolve().parents[2] / "needle.json").read_text(encoding="utf-8"))
KEYS = tuple(f"{colour} {thing}" for colour in GRAMMAR["colours"] for thing in GRAMMAR["things"])


def code(rng: Random, split: str) -> str:
    """Four digits that no text of the other split uses."""
    while True:
        value = f"{rng.randrange(10000):04}"
        if is_held_out("code", value) == (split != TRAIN):
            return value


def needle(key: str, value: str) -> str:
    return GRAMMAR["needle"].format(key=key, value=value)


def ask(rng: Random, key: str, first: bool) -> str:
    return rng.choice(GRAMMAR["questions"] if first else GRAMMAR["questions"] + GRAMMAR["follow_ups"]).format(key=key)


def text_of(rng: Random, needles: list, filler: int) -> str:
    """`filler` sentences with the needles anywhere between them."""
    sentences = [rng.choice(GRAMMAR["filler"]) for _ in range(filler)]
    for sentence in needles:
        sentences.insert(rng.randint(0, len(sentences)), sentence)
    return " ".join(sentences)


def retrieval(rng: Random, split: str, sentences: int) -> Conversation:
    """A text of about `sentences` sentences. Short ones hold more needles and questions, which teaches more for each token."""
    keys = rng.sample(KEYS, k=min(rng.choice((2, 3, 4, 5, 6)), max(2, sentences)))
    values = {key: code(rng, split) for key in keys}
    text = text_of(rng, [needle(k, v) for k, v in values.items()], max(0, sentences - len(keys)))
    think = rng.random() < 0.15
    asked = rng.sample(keys, k=1 if split != TRAIN else rng.choice((1, len(keys), len(keys))))
    messages = []
    for i, key in enumerate(asked):
        question = ask(rng, key, i == 0)
        answer = GRAMMAR["answer"].format(key=key, value=values[key])
        steps = f"They ask for the code of the {key}." if think else None
        messages += [user(f"{text}\n\n{question}" if i == 0 else question), assistant(answer, steps)]
    return Conversation("retrieval", request(messages, think), {"equals": answer, "contains": [values[key]]}, ("code", values[key]),
                        {"kind": "needle", "keys": len(keys)})


class Haystack:
    """Builds prompts of an exact length; `count(request)` gives the tokens of a request's prompt."""

    def __init__(self, count):
        self.count = count
        self.lengths = {}

    def length(self, sentence: str) -> int:
        """Tokens that a sentence adds inside a text."""
        if sentence not in self.lengths:
            whole, rest = (request([user(text)], False) for text in (f"So it is. {sentence} So it is.", "So it is. So it is."))
            self.lengths[sentence] = self.count(whole) - self.count(rest)
        return self.lengths[sentence]

    def filler(self, rng: Random, tokens: int) -> list:
        """Sentences of exactly `tokens` tokens, or none if `tokens` is 0. Two pads of 2 and 3 tokens make up what is left."""
        short, long = GRAMMAR["pads"]
        a, b = self.length(short), self.length(long)
        sentences = []
        while tokens > 4 * (a + b):
            sentences.append(rng.choice(GRAMMAR["filler"]))
            tokens -= self.length(sentences[-1])
        for longs in range(a):
            if (tokens - longs * b) >= 0 and (tokens - longs * b) % a == 0:
                sentences += [long] * longs + [short] * ((tokens - longs * b) // a)
                rng.shuffle(sentences)
                return sentences
        raise ValueError(f"no filler has {tokens} tokens")

    def case(self, rng: Random, tokens: int, depth: float, distractors: int = 3) -> Conversation:
        """A chat prompt of exactly `tokens` tokens, the needle at `depth` of the text: 0 at its beginning, 1 at its end.

        Raises ValueError if no such prompt can be made, mostly because `tokens` is too small."""
        keys = rng.sample(KEYS, k=distractors + 1)
        values = [code(rng, HELDOUT) for _ in keys]
        lines = [needle(key, value) for key, value in zip(keys, values)]
        others = [(rng.random(), line) for line in lines[1:]]
        question = GRAMMAR["questions"][0].format(key=keys[0])
        answer = GRAMMAR["answer"].format(key=keys[0], value=values[0])

        def build(filler: list) -> dict:
            sentences = list(filler)
            for place, line in sorted(others, reverse=True):
                sentences.insert(round(place * len(sentences)), line)
            sentences.insert(round(depth * len(sentences)), lines[0])
            return request([user(" ".join(sentences) + "\n\n" + question), assistant(answer)], False)

        free = tokens - self.count(build([]))
        for _ in range(20):
            made = build(self.filler(rng, free)) if free >= 0 else build([])
            if self.count(made) == tokens:
                return Conversation("retrieval", made, {"equals": answer, "contains": [values[0]]}, ("code", values[0]),
                                    {"kind": "needle", "tokens": tokens, "depth": depth, "keys": len(keys)})
        raise ValueError(f"no text with {len(keys)} keys has exactly {tokens} tokens")
