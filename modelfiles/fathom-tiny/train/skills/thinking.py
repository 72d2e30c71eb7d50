"""Small arithmetic and comparisons: with steps in reasoning, and the same questions answered at once in chat mode.

Reasoning first writes the problem down in one form, whatever the question's wording was, and then works on that. The vocabulary has no tokens of several digits, so a sum is calculated digit by digit, as on paper, from the right."""

from random import Random

from .chat import system_prompt
from .conversation import TRAIN, Conversation, assistant, of_split, request, user
from .talk import NAMES

WORDINGS = {
    "+": ("What is {a} + {b}?", "{a} + {b}?", "Calculate {a} + {b}.", "Add {a} and {b}.", "What is {a} plus {b}?", "{a} + {b} = ?",
          "How much is {a} + {b}?", "What is the sum of {a} and {b}?"),
    "-": ("What is {a} - {b}?", "{a} - {b}?", "Calculate {a} - {b}.", "What is {a} minus {b}?", "{a} - {b} = ?", "How much is {a} - {b}?",
          "Take {b} from {a}."),
    "*": ("What is {a} * {b}?", "{a} * {b}?", "Calculate {a} * {b}.", "What is {a} times {b}?", "{a} * {b} = ?", "How much is {a} * {b}?",
          "Multiply {a} by {b}."),
    ">": ("Which is larger, {a} or {b}?", "Which number is larger: {a} or {b}?", "What is more, {a} or {b}?", "{a} or {b}, which is larger?"),
    "<": ("Which is smaller, {a} or {b}?", "Which number is smaller: {a} or {b}?", "What is less, {a} or {b}?", "{a} or {b}, which is smaller?"),
}
OBJECTS = ("apples", "books", "eggs", "cherries", "lemons")


def add_steps(a: int, b: int) -> str:
    steps, carry = [], 0
    width = max(len(str(a)), len(str(b)))
    for x, y in zip(reversed(str(a).zfill(width)), reversed(str(b).zfill(width))):
        total = int(x) + int(y) + carry
        step = f"{x}+{y}+{carry}={total}" if carry else f"{x}+{y}={total}"
        carry = total // 10
        steps.append(step + (f", carry {carry}" if carry and len(steps) + 1 < width else ""))
    return ". ".join(steps) + f". {a + b}."


def subtract_steps(a: int, b: int) -> str:
    steps, borrow = [], 0
    width = len(str(a))
    for x, y in zip(reversed(str(a)), reversed(str(b).zfill(width))):
        top, below = int(x), int(y) + borrow
        lent = 10 if top < below else 0
        left = top + lent
        step = f"{left}-{y}-{borrow}={left - below}" if borrow else f"{left}-{y}={left - below}"
        borrow = 1 if lent else 0
        steps.append(step + (", borrow 1" if borrow else ""))
    return ". ".join(steps) + f". {a - b}."


def multiply_steps(a: int, b: int) -> str:
    """`b` has one digit."""
    steps, carry = [], 0
    for i, x in enumerate(reversed(str(a))):
        product = int(x) * b
        total = product + carry
        step = f"{x}*{b}={product}" + (f", {product}+{carry}={total}" if carry else "")
        carry = total // 10
        steps.append(step + (f", carry {carry}" if carry and i + 1 < len(str(a)) else ""))
    return ". ".join(steps) + f". {a * b}."


def compare_steps(a: int, b: int) -> str:
    x, y = str(a), str(b)
    if len(x) != len(y):
        return f"{a} has {len(x)} digits, {b} has {len(y)}."
    steps = []
    for p, q in zip(x, y):
        sign = "=" if p == q else ">" if p > q else "<"
        steps.append(f"{p}{sign}{q}")
        if sign != "=":
            break
    return ", ".join(steps) + "."


STEPS = {"+": add_steps, "-": subtract_steps, "*": multiply_steps, ">": compare_steps, "<": compare_steps}


def reasoning(op: str, a: int, b: int) -> str:
    """For example `27+48: 7+8=15, carry 1. 2+4+1=7. 75.` and `482, 479: 4=4, 8>7.`"""
    return f"{a}, {b}: {STEPS[op](a, b)}" if op in "<>" else f"{a}{op}{b}: {STEPS[op](a, b)}"


def _number(rng: Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _draw(rng: Random):
    op = rng.choice("++++---**><")
    if op == "*":
        return op, _number(rng, rng.choice((1, 1, 2))), rng.randrange(2, 10)
    if op in "<>":
        digits = rng.choice((2, 3))
        a, b = _number(rng, digits), _number(rng, rng.choice((digits, digits, digits, 2)))
        if len(str(a)) == len(str(b)) and rng.random() < 0.4:
            b = int(str(a)[0] + str(b)[1:])
        return op, a, b if a != b else a + 1
    a, b = _number(rng, rng.choice((1, 2, 2, 2))), _number(rng, rng.choice((1, 2, 2)))
    return (op, a, b) if op == "+" else (op, max(a, b), min(a, b))


def problem(rng: Random, split: str):
    """An operation with two numbers that no problem of the other split has, in either order."""
    return of_split(rng, split, _draw, pair_key)


def pair_key(drawn) -> tuple:
    op, a, b = drawn
    return ("sum", "<" if op == ">" else op, min(a, b), max(a, b))


def solve(op: str, a: int, b: int):
    """The number that is asked for, and the sentence that says it."""
    if op in "<>":
        value, other = (max(a, b), min(a, b)) if op == ">" else (min(a, b), max(a, b))
        return value, f"{value} is {'larger' if op == '>' else 'smaller'} than {other}."
    value = {"+": a + b, "-": a - b, "*": a * b}[op]
    return value, f"{a} {op} {b} = {value}."


def thinking(rng: Random, split: str) -> Conversation:
    think = rng.random() < 0.75
    turns = 1 if think or split != TRAIN else rng.choice((1, 2, 3))
    messages = system_prompt(rng)
    for _ in range(turns):
        op, a, b = drawn = problem(rng, split)
        value, answer = solve(op, a, b)
        story = op in "+-" and rng.random() < 0.15
        if story:
            name, thing = rng.choice(NAMES), rng.choice(OBJECTS)
            change = f"gets {b} more" if op == "+" else f"gives {b} away"
            ask = f"{name} has {a} {thing} and {change}. How many {thing} does {name} have now?"
            answer = f"{name} has {value} {thing} now."
        else:
            ask = rng.choice(WORDINGS[op]).format(a=a, b=b)
        steps = reasoning(op, a, b)
        messages += [user(ask), assistant(answer, steps if think else None)]
    return Conversation("thinking", request(messages, think), {"equals": answer}, pair_key(drawn),
                        {"kind": "story" if story else op, "think": think})
