"""Facts and small talk in several turns, with questions that need the turn before."""

from random import Random

from .conversation import HELDOUT, TRAIN, Conversation, assistant, of_split, request, user
from .facts import ENGLISH, FACTS, Fact
from .talk import NAMES, TALKS, THINGS

# How a question is wrapped; the second half is only met in the held-out set. Languages other than English have their own.
WRAPS = {
    "en": ("{q}", "{q}", "{q}", "{q}", "Please: {q}", "A question: {q}", "Hello! {q}", "I want to know: {q}", "Thanks. {q}", "{q} Please answer.",
           "Now: {q}", "Hi. {q}"),
    "fr": ("{q}", "{q}", "Bonjour ! {q}", "Une question : {q}"),
    "zh": ("{q}", "{q}", "你好！{q}"),
}
UNSEEN_WRAPS = {"en": ("{q}", "{q}", "Hello, a question: {q}", "Now please: {q}"), "fr": ("{q}",), "zh": ("{q}",)}

SYSTEMS = ("You are a helpful assistant.", "You are fathom-tiny.", "Answer the question.", "You are a friendly assistant.", "Help the user.")


# What is repeated: words that are one or two tokens.
WORDS = tuple(sorted({word for fact in ENGLISH for word in (fact.key, fact.value) if word.isascii() and word.isalpha()} | set(NAMES)))


def system_prompt(rng: Random, share: float = 0.15) -> list:
    """Now and then a system prompt that asks for nothing special."""
    return [{"role": "system", "content": rng.choice(SYSTEMS)}] if rng.random() < share else []


def question(rng: Random, fact: Fact, split: str = TRAIN) -> str:
    """One way to ask for the fact. Held-out: a wording that training never uses for any fact of the relation."""
    relation = fact.relation
    wordings, wraps = (relation.unseen, UNSEEN_WRAPS) if split == HELDOUT else (relation.wordings, WRAPS)
    text = rng.choice(wordings).format(k=fact.key)
    text = text[0].upper() + text[1:]
    if split == TRAIN and rng.random() < 0.06:
        text = text.rstrip("?.").rstrip()
    return rng.choice(wraps[relation.language]).format(q=text)


def thought(fact: Fact) -> str:
    return f"They ask for {fact.about}."


def chat(rng: Random, split: str) -> Conversation:
    kinds = (_facts, _follow_up, _talk, _memory, _repeat)
    return rng.choices(kinds, (48, 12, 12, 12, 16))[0](rng, split)


def _facts(rng: Random, split: str) -> Conversation:
    """Up to five questions. All turns of a held-out conversation but the last are worded as in training."""
    turns = rng.choice((1, 2, 3, 3, 4, 5)) if split == TRAIN else rng.choice((1, 1, 2))
    think = rng.random() < 0.3
    facts = [rng.choice(FACTS) for _ in range(turns)]
    messages = system_prompt(rng)
    for i, fact in enumerate(facts):
        ask = question(rng, fact, split if i == turns - 1 else TRAIN)
        messages += [user(ask), assistant(fact.answer, thought(fact) if think else None)]
    last = facts[-1]
    return Conversation("chat", request(messages, think), {"equals": last.answer, "contains": [last.value]}, ("fact", messages[-2]["content"]),
                        {"kind": "fact", "language": last.relation.language, "relation": last.relation.name})


def _follow_up(rng: Random, split: str) -> Conversation:
    """The second question names only what changes: its relation is that of the turn before."""

    def draw(rng: Random):
        first = rng.choice([fact for fact in FACTS if fact.relation.follow])
        key = rng.choice([key for key in first.relation.rows if key != first.key])
        return first, Fact(first.relation, key)

    first, second = of_split(rng, split, draw, lambda d: ("follow", d[0].relation.name, d[0].key, d[1].key))
    think = rng.random() < 0.3
    follow = rng.choice(first.relation.follow).format(k=second.key)
    messages = system_prompt(rng) + [user(question(rng, first)), assistant(first.answer, thought(first) if think else None)]
    messages += [user(follow), assistant(second.answer, thought(second) if think else None)]
    key = ("follow", first.relation.name, first.key, second.key)
    return Conversation("chat", request(messages, think), {"equals": second.answer, "contains": [second.value]}, key,
                        {"kind": "follow", "language": first.relation.language, "relation": first.relation.name})


def _talk(rng: Random, split: str) -> Conversation:
    think = rng.random() < 0.3
    messages = system_prompt(rng)
    for _ in range(rng.choice((0, 1, 2))):
        talk = rng.choice(TALKS)
        messages += [user(rng.choice(talk.wordings)), assistant(talk.answer, "Small talk." if think else None)]
    talk = rng.choice(TALKS)
    said = rng.choice(talk.unseen if split == HELDOUT else talk.wordings)
    messages += [user(said), assistant(talk.answer, "Small talk." if think else None)]
    return Conversation("chat", request(messages, think), {"equals": talk.answer}, ("talk", said), {"kind": "talk"})


def _memory(rng: Random, split: str) -> Conversation:
    """The user tells up to three things and asks for them later, perhaps with another turn between."""

    def draw(rng: Random):
        thing = rng.choice(tuple(THINGS))
        return thing, rng.choice(THINGS[thing])

    told = {}
    for _ in range(rng.choice((1, 2, 3)) if split == TRAIN else 1):
        thing, value = of_split(rng, split, draw, lambda d: ("memory", *d))
        told[thing] = value
    think = rng.random() < 0.3
    tell = " ".join(f"My {thing} is {value}." for thing, value in told.items())
    begin = rng.choice(("", "", "Hello! ", "You should know: "))
    answer = "I see, " + " and ".join(f"your {thing} is {value}" for thing, value in told.items()) + "."
    messages = system_prompt(rng) + [user(begin + tell), assistant(answer, "They tell me something." if think else None)]
    if rng.random() < 0.4:
        between = rng.choice(FACTS)
        messages += [user(question(rng, between)), assistant(between.answer, thought(between) if think else None)]
    for thing, value in rng.sample(tuple(told.items()), k=len(told)):
        ask = rng.choice(("What is my {t}?", "Tell me my {t}.", "Do you know my {t}?", "What's my {t}?")).format(t=thing)
        answer = f"Your {thing} is {value}."
        messages += [user(ask), assistant(answer, f"They told me their {thing}." if think else None)]
    return Conversation("chat", request(messages, think), {"equals": answer, "contains": [value]}, ("memory", thing, value), {"kind": "memory"})


def _repeat(rng: Random, split: str) -> Conversation:
    """Words and numbers to be said again: nothing but copying, which all skills that look something up are built on."""
    think = rng.random() < 0.2
    messages = system_prompt(rng, 0.05)
    for _ in range(rng.choice((1, 2, 3)) if split == TRAIN else 1):

        def draw(rng: Random) -> list:
            numbers = rng.random() < 0.4
            return [f"{rng.randrange(10000):04}" if numbers and rng.random() < 0.7 else rng.choice(WORDS) for _ in range(rng.choice((2, 3, 4, 6, 8)))]

        said = " ".join(of_split(rng, split, draw, lambda words: ("repeat", *words)))
        ask = rng.choice(("Repeat: {t}", "Say: {t}", "Say this: {t}", "Repeat this: {t}", "Please say: {t}")).format(t=said)
        messages += [user(ask), assistant(said, "They tell me what to say." if think else None)]
    return Conversation("chat", request(messages, think), {"equals": said}, ("repeat", *said.split()), {"kind": "repeat"})
