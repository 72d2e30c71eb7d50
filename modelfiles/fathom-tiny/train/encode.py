"""Requests to prompts and training segments, in the format of the DeepSeek-V4 April release (the release that a checkpoint
with an `mtp.0` block is taken for). Must agree byte for byte with `fathom render`; `python encode.py --check FATHOM` proves it."""

import argparse
import json
import subprocess
import sys
from random import Random
from typing import NamedTuple

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
THINK, END_THINK, DSML = "<think>", "</think>", "｜DSML｜"
GENERATION = "v4_april"

TOOLS = f"""

## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a "<{DSML}tool_calls>" block like the following:

<{DSML}tool_calls>
<{DSML}invoke name="$TOOL_NAME">
<{DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{DSML}parameter>
...
</{DSML}invoke>
<{DSML}invoke name="$TOOL_NAME2">
...
</{DSML}invoke>
</{DSML}tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by {THINK}), you MUST output your complete reasoning inside {THINK}...{END_THINK} BEFORE any tool calls or final response.

Otherwise, output directly after {END_THINK} with tool calls or final response.

### Available Tool Schemas

"""
TOOLS_END = "\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n"
FORMAT = "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"


class Segment(NamedTuple):
    """A piece of the rendered text; a target is what the model has to write. Pieces meet at special tokens."""

    text: str
    target: bool


def _json(value) -> str:
    return json.dumps(value, ensure_ascii=False)


def _system(request: dict) -> str:
    messages = request["messages"]
    text = messages[0]["content"] if messages[0]["role"] == "system" else ""
    if request.get("tools"):
        text += TOOLS + "".join(_json(tool["function"]) + "\n" for tool in request["tools"]) + TOOLS_END
    if isinstance(request.get("format"), dict):
        text += FORMAT + _json(request["format"])
    return text


def _calls(calls: list) -> str:
    text = f"\n\n<{DSML}tool_calls>\n"
    for call in calls:
        parameters = []
        for name, value in call["function"]["arguments"].items():
            string = isinstance(value, str)
            shown = value if string else _json(value)
            parameters.append(f'<{DSML}parameter name="{name}" string="{str(string).lower()}">{shown}</{DSML}parameter>')
        text += f'<{DSML}invoke name="{call["function"]["name"]}">\n' + "\n".join(parameters) + f"\n</{DSML}invoke>\n"
    return text + f"</{DSML}tool_calls>"


def segments(request: dict) -> list[Segment]:
    """The conversation cut into what is given and what is answered. If it ends in a question, the last segment opens the answer.

    Raises ValueError for messages that no skill makes: a second system message, two user messages in a row."""
    messages = request["messages"]
    think = bool(request.get("think"))
    keeps = bool(request.get("tools"))  # reasoning of earlier turns is dropped unless tools are declared
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    last_question = max(i for i, message in enumerate(turns) if message["role"] in ("user", "tool"))
    out, given = [], BOS + _system(request)
    for i, message in enumerate(turns):
        if message["role"] == "assistant":
            text = ""
            if think and (keeps or i > last_question):
                text = message.get("thinking", "") + END_THINK
            text += message["content"]
            if message.get("tool_calls"):
                text += _calls(message["tool_calls"])
            out += [Segment(given, False), Segment(text + EOS, True)]
            given = ""
            continue
        if message["role"] not in ("user", "tool") or given.endswith((THINK, END_THINK)):
            raise ValueError(f"message {i} cannot be rendered here: {message}")
        body = f"<tool_result>{message['content']}</tool_result>" if message["role"] == "tool" else message["content"]
        opens = THINK if think and (keeps or i >= last_question) else END_THINK
        given += USER + body + ASSISTANT + opens
    return out + ([Segment(given, False)] if given else [])


def render(request: dict) -> str:
    return "".join(segment.text for segment in segments(request))


def prompt(request: dict) -> str:
    """The prompt for the last assistant message, without it."""
    messages = request["messages"]
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return render({**request, "messages": messages})


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare this renderer and a tokenizer with `fathom render`.")
    parser.add_argument("--check", metavar="FATHOM", required=True, help="the fathom program")
    parser.add_argument("--model", help="a GGUF of the checkpoint: also compares token ids")
    parser.add_argument("--tokenizer", help="tokenizer.json, with --model")
    parser.add_argument("--count", type=int, default=300)
    args = parser.parse_args()
    from skills import SKILLS, make  # the skills import nothing of this module

    load = None
    if args.model:
        import tokenizer

        load = tokenizer.load(args.tokenizer)
    rng, failed = Random("encode check"), 0
    command = [args.check, "render", "--json", "--generation", GENERATION] + (["--model", args.model] if args.model else [])
    for n in range(args.count):
        request = make(SKILLS[n % len(SKILLS)], rng, "train").request
        request = {**request, "messages": request["messages"][:-1]}
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True)
        theirs = json.loads(done.stdout) if done.returncode == 0 else {"prompt": done.stderr, "tokens": None}
        ours = render(request)
        tokens = load.encode(ours) if load else None
        if theirs["prompt"] != ours or (load and theirs["tokens"] != tokens):
            failed += 1
            print(f"differs: {json.dumps(request, ensure_ascii=False)}\nours:   {ours!r} {tokens}\nfathom: {theirs['prompt']!r} {theirs['tokens']}")
    print(f"{args.count} requests, {failed} differ")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
