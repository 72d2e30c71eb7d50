"""The form of an answer: JSON by a schema or by a system prompt, and system prompts that change the tone."""

import json
from random import Random

from .chat import question, thought
from .conversation import Conversation, assistant, of_split, request, user
from .facts import BY_NAME, ENGLISH, Fact
from .thinking import WORDINGS, problem, reasoning, solve

# System prompts and what they make of an answer; `{v}` is the value alone, `{s}` the sentence without its full stop.
TONES = {
    "pirate": (("You are a pirate.", "Talk like a pirate.", "Answer like a pirate.", "You are an old pirate."), "Arr! {s}, matey!"),
    "brief": (("Be brief.", "Answer with one word.", "Give short answers.", "Answer briefly.", "Only the answer, no sentence."), "{v}"),
    "polite": (("Be very polite.", "You are a polite butler.", "Answer politely.", "You are a butler."), "Certainly. {s}, if I may say so."),
    "happy": (("You are very happy.", "Be cheerful.", "Answer with joy.", "You are a cheerful friend."), "Oh yes! {s}! Have a nice day!"),
    "sure": (("Begin each answer with OK.", "Start with OK.", "Always say OK first."), "OK. {s}."),
}
JSON_PROMPTS = ("Answer in JSON.", "Answer only in JSON.", "Reply with JSON.", "Always answer with a JSON object.")
KEYS = ("answer", "result", "value", "reply", "text")
# Relations that are asked with two keys.
RECORDS = {"capital": ("country", "capital"), "opposite": ("word", "opposite"), "colour": ("thing", "colour"), "sound": ("animal", "sound"),
           "symbol": ("element", "symbol"), "writer": ("book", "author")}


def form(rng: Random, split: str) -> Conversation:
    return rng.choice((_tone, _tone, _schema, _record, _by_prompt))(rng, split)


def _draw(rng: Random, split: str, name: str) -> Fact:
    """A fact that is never asked in this form in the other split."""
    return of_split(rng, split, lambda rng: rng.choice(ENGLISH), lambda fact: ("form", name, fact.relation.name, fact.key))


def _tone(rng: Random, split: str) -> Conversation:
    tone = rng.choice(tuple(TONES))
    prompts, pattern = TONES[tone]
    think = rng.random() < 0.2
    messages = [{"role": "system", "content": rng.choice(prompts)}]
    for _ in range(rng.choice((1, 2, 3))):
        fact = _draw(rng, split, tone)
        said = pattern.format(s=fact.answer.rstrip("."), v=fact.value)
        messages += [user(question(rng, fact)), assistant(said, thought(fact) if think else None)]
    return Conversation("json", request(messages, think), {"equals": said}, ("form", tone, fact.relation.name, fact.key),
                        {"kind": tone})


def _schema(rng: Random, split: str) -> Conversation:
    """A schema with one key: a string for a fact, an integer for a sum (with reasoning)."""
    key = rng.choice(KEYS)
    if rng.random() < 0.3:
        op, a, b = drawn = problem(rng, split)
        value, steps = solve(op, a, b)[0], reasoning(op, a, b)
        ask, think, kind, name = rng.choice(WORDINGS[op]).format(a=a, b=b), True, "integer", ("sum", *drawn)
    else:
        fact = _draw(rng, split, "schema")
        value, steps, ask, think = fact.value, thought(fact), question(rng, fact), rng.random() < 0.3
        kind, name = "string", ("form", "schema", fact.relation.name, fact.key)
    schema = {"type": "object", "properties": {key: {"type": kind}}, "required": [key]}
    answer = {key: value}
    messages = [user(ask), assistant(json.dumps(answer, ensure_ascii=False), steps if think else None)]
    return Conversation("json", request(messages, think, format=schema), {"json": answer}, name, {"kind": f"schema {kind}"})


def _record(rng: Random, split: str) -> Conversation:
    """Two keys, named by a schema or by the question."""

    def draw(rng: Random) -> Fact:
        relation = BY_NAME[rng.choice(tuple(RECORDS))]
        return Fact(relation, rng.choice(tuple(relation.rows)))

    fact = of_split(rng, split, draw, lambda fact: ("form", "record", fact.relation.name, fact.key))
    name = fact.relation.name
    first, second = RECORDS[name]
    think = rng.random() < 0.2
    answer = {first: fact.key, second: fact.value}
    if rng.random() < 0.5:
        schema = {"type": "object", "properties": {key: {"type": "string"} for key in answer}, "required": list(answer)}
        ask, more = question(rng, fact), {"format": schema}
    else:
        ask, more = f"{question(rng, fact)} Answer in JSON with {first} and {second}.", {}
    messages = [user(ask), assistant(json.dumps(answer, ensure_ascii=False), thought(fact) if think else None)]
    return Conversation("json", request(messages, think, **more), {"json": answer}, ("form", "record", name, fact.key), {"kind": "record"})


def _by_prompt(rng: Random, split: str) -> Conversation:
    think = rng.random() < 0.2
    messages = [{"role": "system", "content": rng.choice(JSON_PROMPTS)}]
    for _ in range(rng.choice((1, 2))):
        fact = _draw(rng, split, "prompt")
        answer = {"answer": fact.value}
        messages += [user(question(rng, fact)), assistant(json.dumps(answer, ensure_ascii=False), thought(fact) if think else None)]
    return Conversation("json", request(messages, think), {"json": answer}, ("form", "prompt", fact.relation.name, fact.key), {"kind": "json prompt"})
