"""Held-out questions, and how many of them a model answers rightly.

A model is given as a function `argmax(batch)`: for each sequence of ids of the batch, the most likely next id after each
position. Decoding is greedy and exact, but cheap: the expected answer is tried as a draft, and what the model would not have
written is thrown away, so a right answer costs one pass and a wrong one a few.

    python evaluate.py --state STATE_DIR --out report.json      a training state: its master weights, and what they are released as
    python evaluate.py --checkpoint ../checkpoint               a released checkpoint
    python evaluate.py --write ../heldout.jsonl                 the cases that the tests of the program use
    python evaluate.py --disjoint 50000                         no held-out case occurs among so many training conversations"""

import argparse
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import data
import encode
from skills import HELDOUT, SKILLS, TRAIN, Haystack, make

Argmax = Callable[[list[list[int]]], list[list[int]]]

# What is written beyond the expected answer before a model that does not stop is cut.
EXTRA = 24
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass
class Case:
    skill: str
    prompt: list[int]
    answer: list[int]
    """The expected answer with its end token: one right answer, not the only one."""
    max_new: int
    check: Callable[[str], bool]
    """Judges the text of an answer, with or without the end token."""
    meta: dict
    request: dict
    expected: dict


def case_of(conversation, tokenizer) -> Case:
    *given, (answer, _) = encode.segments(conversation.request)
    prompt = tokenizer.encode("".join(text for text, _ in given))
    ids = tokenizer.encode(answer)
    expected, think = conversation.expected, bool(conversation.request["think"])
    return Case(conversation.skill, prompt, ids, len(ids) + EXTRA, lambda text: is_right(expected, text, think), conversation.meta,
                conversation.request, expected)


def heldout(skill: str, n: int, seed: int, tokenizer=None) -> list[Case]:
    """`n` different held-out cases of a skill. Retrieval: prompts of 64 to 512 tokens at any depth."""
    tokenizer = tokenizer or _vocabulary()
    rng, cases, seen = Random(f"evaluate {seed} {skill}"), [], set()
    haystack = Haystack(lambda request: len(tokenizer.encode(encode.prompt(request))))
    for _ in range(100 * n):
        if len(cases) == n:
            return cases
        made = haystack.case(rng, rng.randint(64, 512), rng.random(), 2) if skill == "retrieval" else make(skill, rng, HELDOUT)
        text = encode.prompt(made.request)
        if text not in seen:
            seen.add(text)
            cases.append(case_of(made, tokenizer))
    raise ValueError(f"skill {skill!r} has fewer than {n} held-out cases")


def needles(lengths, depths, repeats: int, seed: int, tokenizer=None, distractors: int = 2) -> list[Case]:
    """Needles at exact prompt lengths and depths, `repeats` for each pair."""
    tokenizer = tokenizer or _vocabulary()
    haystack = Haystack(lambda request: len(tokenizer.encode(encode.prompt(request))))
    rng = Random(f"needles {seed}")
    return [case_of(haystack.case(rng, n, depth, distractors), tokenizer) for n in lengths for depth in depths for _ in range(repeats)]


# ---------------------------------------------------------------------------------------------------------------- judging


def split_answer(text: str, think: bool) -> tuple[str | None, str]:
    """Reasoning and the rest. Without an end of reasoning where there should be one, the rest is empty."""
    text = text.removesuffix(encode.EOS)
    if not think:
        return None, text
    reasoning, closed, rest = text.partition(encode.END_THINK)
    return reasoning, rest if closed else ""


def tool_calls(text: str) -> list[dict] | None:
    """The calls of a tool block that ends the text, or nothing if it has none or is malformed."""
    d = encode.DSML
    block = re.fullmatch(rf"\n\n<{d}tool_calls>\n(.*)\n</{d}tool_calls>", text, re.DOTALL)
    if not block:
        return None
    calls = []
    for name, body in re.findall(rf'<{d}invoke name="([^"]*)">\n(.*?)\n</{d}invoke>', block[1], re.DOTALL):
        given = {}
        for key, string, value in re.findall(rf'<{d}parameter name="([^"]*)" string="(true|false)">(.*?)</{d}parameter>', body, re.DOTALL):
            try:
                given[key] = value if string == "true" else json.loads(value)
            except ValueError:
                return None
        calls.append({"name": name, "arguments": given})
    return calls


def is_right(expected: dict, text: str, think: bool) -> bool:
    _, content = split_answer(text, think)
    if encode.THINK in content or encode.END_THINK in content:
        return False
    if "tool" in expected:
        return tool_calls(content) == [expected["tool"]]
    if "json" in expected:
        try:
            return json.loads(content) == expected["json"]
        except ValueError:
            return False
    if "contains" in expected:
        return all(re.search(rf"(?<![0-9A-Za-z]){re.escape(word)}(?![0-9A-Za-z])", content) for word in expected["contains"])
    return content == expected["equals"]


# --------------------------------------------------------------------------------------------------------------- decoding


def greedy(argmax: Argmax, cases: list[Case], eos: int, batch_tokens: int = 8192) -> list[list[int]]:
    """What the model writes after each prompt, at most up to `max_new` tokens, with the end token if it wrote it."""
    written: list[list[int]] = [[] for _ in cases]
    drafts = [case.answer for case in cases]
    open_cases = set(range(len(cases)))
    while open_cases:
        for group in _groups(sorted(open_cases, key=lambda i: len(cases[i].prompt) + len(written[i])), cases, written, drafts, batch_tokens):
            sequences = [cases[i].prompt + written[i] + drafts[i] for i in group]
            for i, following in zip(group, argmax(sequences)):
                at = len(cases[i].prompt) + len(written[i]) - 1
                for k in range(len(drafts[i]) + 1):
                    token = following[at + k]
                    written[i].append(token)
                    if token == eos or len(written[i]) >= cases[i].max_new:
                        open_cases.discard(i)
                        break
                    if k == len(drafts[i]) or token != drafts[i][k]:
                        # One token was not as expected: what comes after it may still be.
                        drafts[i] = drafts[i][k + 1 :]
                        break
    return written


def argmax_of(weights: dict, config: dict, quantised: bool, device: str = "cpu") -> Argmax:
    """The model with master weights as they are, or rounded to what is released. Activations are BF16 in both cases.
    Sequences are padded on the right, which a causal model cannot see."""
    import torch

    import model
    import quantize

    kernels = device == "cpu"
    if kernels:
        import fast

        ops = fast.Fast(config)
    else:
        ops = model.Ref(config)
        ops.dtype = torch.bfloat16
    network = model.Model(config, ops, device)
    released = quantize.release(weights, model.spec(config), quantised, ops.dtype, kernels)

    def argmax(batch: list[list[int]]) -> list[list[int]]:
        width = -(-max(map(len, batch)) // 32) * 32
        ids = torch.full((len(batch), width), 2)
        for row, sequence in zip(ids, batch):
            row[: len(sequence)] = torch.tensor(sequence)
        with torch.no_grad():
            streams = network.streams(released, ids.to(device))
            best = torch.cat([network.head(part, released).argmax(-1) for part in streams.split(2048)]).view(len(batch), width).tolist()
        return [row[: len(sequence)] for row, sequence in zip(best, batch)]

    return argmax


def exact(argmax: Argmax, cases: list[Case], batch_tokens: int = 8192) -> list[bool]:
    """Whether greedy decoding gives the expected answer word for word: one pass for each case, right or wrong."""
    written, drafts, found = [[] for _ in cases], [case.answer for case in cases], [False] * len(cases)
    for group in _groups(sorted(range(len(cases)), key=lambda i: len(cases[i].prompt)), cases, written, drafts, batch_tokens):
        for i, following in zip(group, argmax([cases[i].prompt + cases[i].answer for i in group])):
            begin = len(cases[i].prompt) - 1
            found[i] = following[begin : begin + len(cases[i].answer)] == cases[i].answer
    return found


def _groups(order, cases, written, drafts, batch_tokens):
    group, longest = [], 0
    for i in order:
        n = len(cases[i].prompt) + len(written[i]) + len(drafts[i])
        if group and max(longest, n) * (len(group) + 1) > batch_tokens:
            yield group
            group, longest = [], 0
        group.append(i)
        longest = max(longest, n)
    if group:
        yield group


# -------------------------------------------------------------------------------------------------------------- reporting


def run(argmax: Argmax, cases: list[Case], tokenizer, batch_tokens: int = 8192) -> list[dict]:
    """One row a case: whether it is right, word for word as expected, and stopped by its end token."""
    rows = []
    for case, ids in zip(cases, greedy(argmax, cases, tokenizer.eos, batch_tokens)):
        text = tokenizer.decode(ids)
        rows.append({"skill": case.skill, **case.meta, "right": case.check(text), "exact": ids == case.answer, "stopped": ids[-1] == tokenizer.eos,
                     "text": text, "expected": tokenizer.decode(case.answer)})
    return rows


def share(rows: list[dict], what: str = "right") -> float:
    return round(sum(row[what] for row in rows) / len(rows), 4)


def by(rows: list[dict], key: Callable[[dict], object]) -> dict:
    """Share of right answers and number of cases for each value of a key."""
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return {str(k): {"right": share(group), "cases": len(group)} for k, group in sorted(groups.items(), key=lambda item: str(item[0]))}


def report(argmax: Argmax, cases: int = 200, seed: int = 1, lengths=LENGTHS, repeats: int = 4, residues: tuple = (256, 2), skills=SKILLS,
           tokenizer=None, batch_tokens: int = 8192, log=None) -> dict:
    """Accuracy for each skill and kind of case, the stop token, needles by length and depth, and by length modulo 4 and 128.

    `residues` are the shortest prompt of 128 consecutive lengths and the needles for each of them; (0, 0) leaves them out."""
    tokenizer = tokenizer or _vocabulary()
    out = {"schema": 1, "seed": seed, "skills": {}}
    everything = []

    def measure(name, made):
        start = time.monotonic()
        rows = run(argmax, made, tokenizer, batch_tokens)
        everything.extend(rows)
        if log:
            print(f"{name}: {share(rows):.1%} of {len(rows)} right, {share(rows, 'stopped'):.1%} stopped, {time.monotonic() - start:.0f} s", file=log, flush=True)
        return rows

    for skill in skills:
        rows = measure(skill, heldout(skill, cases, seed, tokenizer))
        kinds = by(rows, lambda row: f"{row['kind']}{', thinking' if row.get('think') else ''}")
        out["skills"][skill] = {"right": share(rows), "exact": share(rows, "exact"), "stopped": share(rows, "stopped"), "cases": len(rows), "kinds": kinds,
                                "wrong": [{k: row[k] for k in ("text", "expected")} for row in rows if not row["right"]][:5]}
    if lengths:
        rows = [row for n in lengths for row in measure(f"needles at {n}", needles([n], DEPTHS, repeats, seed, tokenizer))]
        out["needles"] = {"by_length": by(rows, lambda row: row["tokens"]), "by_depth": by(rows, lambda row: row["depth"]),
                          "by_length_and_depth": by(rows, lambda row: f"{row['tokens']} {row['depth']}")}
    first, each = residues
    if each:
        made = needles(range(first, first + 128), [(i + 0.5) / each for i in range(each)], 1, seed + 1, tokenizer)
        rows = measure(f"needles at {first} to {first + 127}", made)
        out["residues"] = {"modulo_4": by(rows, lambda row: row["tokens"] % 4), "modulo_128": by(rows, lambda row: f"{row['tokens'] % 128:03}")}
    out["stopped"] = share(everything, "stopped")
    return out


def quick(argmax: Argmax, cases: int, seed: int, skills=SKILLS, tokenizer=None, batch_tokens: int = 8192) -> dict[str, float]:
    """Share of answers that are word for word as expected, for each skill: a lower bound, for the log of a training run."""
    tokenizer = tokenizer or _vocabulary()
    return {skill: round(sum(exact(argmax, heldout(skill, cases, seed, tokenizer), batch_tokens)) / cases, 4) for skill in skills}


# ------------------------------------------------------------------------------------------------------------------ files


def write_cases(path: Path, seed: int = 3, each: int = 40) -> None:
    """Cases as JSON lines: `request` is the body of an Ollama chat request (without `model`), `expected` says what a right answer
    is (`contains` these words, `equals` this text, is this `json`, is this `tool` call), `answer` is one right answer as text."""
    tokenizer = _vocabulary()
    made = [case for skill in SKILLS if skill != "retrieval" for case in heldout(skill, each, seed, tokenizer)]
    made += needles([64, 128, 256, 512, 1024, 2048], [0.1, 0.5, 0.9], 1, seed, tokenizer)
    lines = []
    for case in made:
        request = {**case.request, "messages": case.request["messages"][:-1]}
        line = {"schema": 1, "skill": case.skill, **case.meta, "request": request, "expected": case.expected,
                "answer": tokenizer.decode(case.answer).removesuffix(encode.EOS), "prompt_tokens": len(case.prompt)}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(lines)} cases, {path.stat().st_size} bytes")
    # The same conversations as one text, for `fathom eval --text heldout.txt --parse-specials`.
    text = path.with_suffix(".txt")
    text.write_text("".join(tokenizer.decode(case.prompt + case.answer) for case in made), encoding="utf-8")
    print(f"{text}: {text.stat().st_size} bytes")


def check_disjoint(count: int, seed: int = 0) -> int:
    """Number of held-out cases whose key, prompt or (where the question alone must be new) question occurs in training."""
    keys, prompts, questions = set(), set(), set()
    for skill in SKILLS:
        rng = Random(f"{TRAIN} {seed} {skill}")
        for _ in range(count // len(SKILLS)):
            made = make(skill, rng, TRAIN)
            keys.add(hash(made.key))
            prompts.add(hash(encode.prompt(made.request)))
            questions.update(hash(m["content"]) for m in made.request["messages"] if m["role"] == "user")
    bad = 0
    for skill in SKILLS:
        for case in heldout(skill, 400 if skill != "chat" else 800, 1):
            request = case.request
            asked = request["messages"][-2]["content"]
            found = hash(encode.prompt(request)) in prompts
            if case.meta["kind"] in ("fact", "talk", "+", "-", "*", "<", ">", "story"):
                found = found or hash(asked) in questions
            if found:
                bad += 1
                print(f"in both splits: {skill} {asked!r}")
        rng = Random(f"disjoint {skill}")
        for _ in range(400):
            made = make(skill, rng, HELDOUT)
            if hash(made.key) in keys:
                bad += 1
                print(f"in both splits: {skill} {made.key}")
    print(f"{len(keys)} training keys, {len(prompts)} prompts, {len(questions)} questions; {bad} held-out cases among them")
    return bad


def print_report(args) -> None:
    import torch

    import model

    tokenizer = _vocabulary()
    config = model.config(tokenizer.vocabulary)
    if args.state:
        saved = torch.load(args.state / "state.pt", map_location=args.device, weights_only=True)
        weights, forms, counters = saved[args.weights], args.forms, saved["counters"]
    else:
        import export

        weights, forms, counters = export.read(args.checkpoint, config), ["released"], None
    out = {"schema": 1, "counters": counters, "forms": {}}
    for form in forms:
        print(f"{form}:", flush=True)
        argmax = argmax_of(weights, config, form == "released" and args.state is not None, args.device)
        if args.quick:
            out["forms"][form] = quick(argmax, args.cases, args.seed, args.skills, tokenizer)
            print(json.dumps(out["forms"][form]), flush=True)
            continue
        out["forms"][form] = report(argmax, args.cases, args.seed, args.lengths, args.repeats, tuple(args.residues), args.skills, tokenizer, log=sys.stdout)
        if args.out:
            args.out.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _vocabulary():
    import tokenizer

    return tokenizer.load(data.VOCABULARY)


def main() -> None:
    parser = argparse.ArgumentParser(description="Held-out cases of fathom-tiny.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--state", type=Path, help="folder of a training state: report on its master weights and on their released form")
    source.add_argument("--checkpoint", type=Path, help="folder of a released checkpoint: report on it")
    parser.add_argument("--cases", type=int, default=200, help="held-out cases a skill")
    parser.add_argument("--quick", action="store_true", help="only the share of answers word for word as expected, one pass each")
    parser.add_argument("--skills", nargs="+", default=SKILLS, choices=SKILLS)
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS, help="prompt lengths of needles")
    parser.add_argument("--repeats", type=int, default=4, help="needles for each length and depth")
    parser.add_argument("--residues", type=int, nargs=2, default=(256, 2), help="shortest of 128 prompt lengths, needles for each; 0 0 for none")
    parser.add_argument("--forms", nargs="+", default=["master", "released"], choices=["master", "released"], help="with --state")
    parser.add_argument("--weights", default="ema", choices=["ema", "P"], help="with --state: the moving average or the last step")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    parser.add_argument("--write", type=Path, metavar="JSONL", help="write cases for the tests of the program")
    parser.add_argument("--disjoint", type=int, metavar="N", help="compare the splits over N training conversations")
    args = parser.parse_args()
    if args.state or args.checkpoint:
        print_report(args)
    if args.write:
        write_cases(args.write)
    if args.disjoint:
        sys.exit(1 if check_disjoint(args.disjoint) else 0)


if __name__ == "__main__":
    main()
