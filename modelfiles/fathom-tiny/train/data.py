"""The training data: an endless, reproducible stream of tokenised conversations, mixed by skill.

`python data.py` prints a few samples and how fast they come."""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import encode
from skills import SKILLS, make

VOCABULARY = Path(__file__).with_name("vocabulary")

# Shares of the tokens, not of the samples.
WEIGHTS = {"chat": 0.3, "thinking": 0.2, "tools": 0.2, "retrieval": 0.2, "json": 0.1}
# Stages of training: tokens seen before it begins, the longest sample, and weights. Short texts teach to look things up, which the
# longer ones then need; tool conversations start at about 350 tokens.
CURRICULUM = (
    (0, 160, {"chat": 0.4, "thinking": 0.25, "retrieval": 0.25, "json": 0.1}),
    (600_000, 512, {"chat": 0.15, "thinking": 0.25, "tools": 0.25, "retrieval": 0.2, "json": 0.15}),
    (4_000_000, 1024, {"chat": 0.15, "thinking": 0.25, "tools": 0.2, "retrieval": 0.25, "json": 0.15}),
    (12_000_000, 2048, {"chat": 0.15, "thinking": 0.2, "tools": 0.2, "retrieval": 0.35, "json": 0.1}),
    (25_000_000, 4096, {"chat": 0.15, "thinking": 0.2, "tools": 0.2, "retrieval": 0.35, "json": 0.1}),
)
# The shortest text that retrieval hides a code in, and what a sentence of it takes.
SHORTEST, SENTENCE = 48, 6.4
TRIES = 200


class Sample(NamedTuple):
    """`loss` is 1 for the tokens that the model has to write: reasoning, answer, tool call and the end token."""

    tokens: list[int]
    loss: list[int]
    skill: str


def samples(split: str, seed: int, tokenizer, weights: dict[str, float] | None = None, max_tokens: int = 512) -> Iterator[Sample]:
    """Samples of at most `max_tokens` tokens; the lengths of retrieval are spread evenly on a logarithmic scale up to it.

    Equal arguments give equal streams. The next skill is the one whose share of the tokens so far lags most behind its weight.
    Raises ValueError for an unknown skill, for weights that are all zero, and when a skill makes nothing that is short enough."""
    weights = WEIGHTS if weights is None else weights
    unknown = set(weights) - set(SKILLS)
    if unknown:
        raise ValueError(f"no skill is called {sorted(unknown)[0]!r}; there are {', '.join(SKILLS)}")
    shares = {skill: weight for skill, weight in weights.items() if weight > 0}
    if not shares:
        raise ValueError("all weights are zero")
    rng = {skill: Random(f"{split} {seed} {skill}") for skill in shares}
    made = dict.fromkeys(shares, 0)
    while True:
        skill = min(shares, key=lambda s: made[s] / shares[s])
        sample = _fitting(rng[skill], skill, split, tokenizer, max_tokens)
        made[skill] += len(sample.tokens)
        yield sample


def stage(tokens_seen: int) -> tuple[int, int, dict[str, float]]:
    """Number, longest sample and weights of the stage that training is in after so many tokens."""
    number = max(i for i, (begins, _, _) in enumerate(CURRICULUM) if begins <= tokens_seen)
    return number, *CURRICULUM[number][1:]


def curriculum(seed: int, tokenizer, tokens_seen: int) -> Iterator[Sample]:
    """Training samples by `CURRICULUM`, beginning after `tokens_seen` tokens."""
    while True:
        number, longest, weights = stage(tokens_seen)
        for sample in samples("train", seed + tokens_seen, tokenizer, weights, longest):
            tokens_seen += len(sample.tokens)
            yield sample
            if stage(tokens_seen)[0] != number:
                break


def _fitting(rng: Random, skill: str, split: str, tokenizer, max_tokens: int) -> Sample:
    length = math.exp(rng.uniform(math.log(min(SHORTEST, max_tokens)), math.log(max_tokens)))
    for _ in range(TRIES):
        sample = tokenise(tokenizer, make(skill, rng, split, sentences=max(1, round(length / SENTENCE))))
        if len(sample.tokens) <= max_tokens:
            return sample
        length *= 0.9
    raise ValueError(f"skill {skill!r} has no conversation of at most {max_tokens} tokens: give it weight 0 or allow longer ones")


def tokenise(tokenizer, conversation) -> Sample:
    tokens, loss = [], []
    for segment in encode.segments(conversation.request):
        ids = tokenizer.encode(segment.text)
        tokens += ids
        loss += [int(segment.target)] * len(ids)
    return Sample(tokens, loss, conversation.skill)


def main() -> None:
    parser = argparse.ArgumentParser(description="Show samples, and tokens for each skill and second.")
    parser.add_argument("--split", default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--show", type=int, default=12)
    parser.add_argument("--count", type=int, default=2000)
    args = parser.parse_args()
    import tokenizer

    vocabulary = tokenizer.load(VOCABULARY)
    stream = samples(args.split, args.seed, vocabulary, None, args.max_tokens)
    for sample, _ in zip(stream, range(args.show)):
        print(f"[{sample.skill}, {len(sample.tokens)} tokens, {sum(sample.loss)} to learn]\n{vocabulary.decode(sample.tokens)}\n")
    start, count = time.monotonic(), {skill: [0, 0, 0] for skill in SKILLS}
    for sample, _ in zip(stream, range(args.count)):
        for i, n in enumerate((1, len(sample.tokens), sum(sample.loss))):
            count[sample.skill][i] += n
    seconds = time.monotonic() - start
    for skill, (n, tokens, targets) in count.items():
        print(f"{skill}: {n} samples, {tokens} tokens, {targets} to learn")
    print(f"{sum(c[1] for c in count.values()) / seconds:.0f} tokens/s")


if __name__ == "__main__":
    main()
