"""What every skill produces: a conversation in the form of an Ollama chat request, and what its last answer must say."""

import hashlib
from dataclasses import dataclass, field
from random import Random

TRAIN, HELDOUT = "train", "heldout"


@dataclass(frozen=True)
class Conversation:
    """`request` ends in an assistant message. `expected` says how to judge an answer in place of that message and holds
    JSON values only; `meta` describes the case for reports. `key` is what the split is made by."""

    skill: str
    request: dict
    expected: dict
    key: tuple
    meta: dict = field(default_factory=dict)


def is_held_out(*key) -> bool:
    """Whether a combination (two numbers, a code, an argument) belongs to the held-out tenth. Depends on nothing but the key."""
    return hashlib.blake2b(repr(key).encode(), digest_size=1).digest()[0] < 26


def of_split(rng: Random, split: str, draw, key):
    """Draws until `key(drawn)` lies in the split. Raises ValueError when nothing of what is drawn does."""
    for _ in range(2000):
        drawn = draw(rng)
        if is_held_out(*key(drawn)) == (split == HELDOUT):
            return drawn
    raise ValueError(f"nothing for the {split} split is like {key(drawn)}")


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str, thinking: str | None = None, tool_calls: list | None = None) -> dict:
    message = {"role": "assistant", "content": text}
    if thinking is not None:
        message["thinking"] = thinking
    if tool_calls:
        message["tool_calls"] = tool_calls
    return message


def request(messages: list, think: bool, **more) -> dict:
    return {"messages": messages, "think": think, **more}
