"""A code for each of several doors, boxes, ... in a filler text, asked for at the end.

The grammar (filler, keys, wordings) is `../../needle.json`, so that other programs can build the same texts."""

import json
from pathlib import Path
from random import Random

from .conversation import TRAIN, Conversation, assistant, is_held_out, request, user

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


def text_of(rng: Random, needles: list, filler: int, depths: list | None = None) -> str:
    """`filler` sentences with the needles between them: at random places, or at `depths` (0 first, 1 last)."""
    sentences = [rng.choice(GRAMMAR["filler"]) for _ in range(filler)]
    places = depths if depths is not None else [rng.random() for _ in needles]
    for place, sentence in sorted(zip(places, needles), reverse=True):
        sentences.insert(round(place * filler), sentence)
    return " ".join(sentences)


def retrieval(rng: Random, split: str, sentences: int) -> Conversation:
    """A text of about `sentences` sentences. Short ones hold more needles and questions, which teaches more for each token."""
    keys = rng.sample(KEYS, k=min(rng.choice((2, 3, 4, 5, 6)), max(2, sentences)))
    values = {key: code(rng, split) for key in keys}
    text = text_of(rng, [needle(k, v) for k, v in values.items()], max(0, sentences - len(keys)))
    think = rng.random() < 0.15
    asked = rng.sample(keys, k=1 if split != TRAIN else rng.randint(1, len(keys)))
    messages = []
    for i, key in enumerate(asked):
        question = ask(rng, key, i == 0)
        answer = GRAMMAR["answer"].format(key=key, value=values[key])
        steps = f"They ask for the code of the {key}." if think else None
        messages += [user(f"{text}\n\n{question}" if i == 0 else question), assistant(answer, steps)]
    return Conversation("retrieval", request(messages, think), {"equals": answer, "contains": [values[key]]}, ("code", values[key]),
                        {"kind": "needle", "keys": len(keys)})


def needle_case(rng: Random, count, tokens: int, depth: float, distractors: int = 3) -> Conversation:
    """A chat prompt of exactly `tokens` tokens as `count(request) -> int` counts them, the needle at `depth` of the text.

    Raises ValueError if the text cannot be made so short."""
    keys = rng.sample(KEYS, k=distractors + 1)
    value = code(rng, "heldout")
    lines = [needle(keys[0], value)] + [needle(k, code(rng, "heldout")) for k in keys[1:]]
    places = [depth] + [rng.random() for _ in keys[1:]]
    question = GRAMMAR["questions"][0].format(key=keys[0])
    answer = GRAMMAR["answer"].format(key=keys[0], value=value)

    def build(filler: list) -> dict:
        sentences = list(filler)
        for place, sentence in sorted(zip(places, lines), reverse=True):
            sentences.insert(round(place * len(filler)), sentence)
        return request([user(f"{' '.join(sentences)}\n\n{question}"), assistant(answer)], False)

    filler, total = [], count(build([]))
    units = GRAMMAR["filler"]
    while total < tokens - 24:
        filler.append(rng.choice(units))
        grown = count(build(filler)) if len(filler) <= 2 else total + _length(count, filler[-1])
        total = grown
    total = count(build(filler))
    # The rest is filled exactly: `pads` differ by one token in length.
    while total < tokens:
        short, long = GRAMMAR["pads"]
        a, b = _length(count, short), _length(count, long)
        left = tokens - total
        pick = next((p for p, n in ((long, b), (short, a)) if left - n == 0 or left - n >= a), None)
        if pick is None:
            break
        filler.insert(rng.randrange(len(filler) + 1), pick)
        total = count(build(filler))
    if total != tokens:
        raise ValueError(f"a text of {tokens} tokens cannot be made (nearest: {total})")
    return Conversation("retrieval", build(filler), {"equals": answer, "contains": [value]}, ("code", value),
                        {"kind": "needle", "tokens": tokens, "depth": depth, "keys": len(keys)})


_LENGTHS: dict = {}


def _length(count, sentence: str) -> int:
    """Tokens that a sentence adds inside a text."""
    if sentence not in _LENGTHS:
        body = lambda text: request([user(text), assistant("")], False)
        _LENGTHS[sentence] = count(body(f"So it is. {sentence} So it is.")) - count(body("So it is. So it is."))
    return _LENGTHS[sentence]
