"""Asks a served model one fact, one sum with thinking and one question that needs a tool, over the Ollama interface, and prints all of it.

    python3 scripts/demo.py URL MODEL

Needs nothing but Python. A wrong answer is printed as it is and marked; only an interface that breaks is a failure."""

import json
import sys
import urllib.error
import urllib.request

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather for a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
RESULT = {"temperature": 15, "condition": "sunny"}
# Greedy, and short enough for a model that does not know when to stop.
OPTIONS = {"temperature": 0, "num_predict": 160}


def chat(url: str, model: str, messages: list, think: bool, tools: list = ()) -> dict:
    """The message that the model answers with."""
    body = {"model": model, "messages": messages, "think": think, "stream": False, "options": OPTIONS}
    if tools:
        body["tools"] = list(tools)
    request = urllib.request.Request(f"{url}/api/chat", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as reply:
            answer = json.load(reply)
    except urllib.error.HTTPError as error:
        sys.exit(f"error: {url}/api/chat answered {error.code}: {error.read().decode(errors='replace')}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {url}/api/chat: {error}")
    message = answer.get("message", {})
    if not answer.get("done") or message.get("role") != "assistant" or "content" not in message:
        sys.exit(f"error: this is no finished answer: {json.dumps(answer)}")
    if answer.get("done_reason") == "length":
        say("note", f"cut after {OPTIONS['num_predict']} tokens: the model did not end its answer (under-trained)")
    return message


def say(what: str, text: str) -> None:
    first, *rest = text.strip().splitlines() or [""]
    print(f"{what:<10}  {first}")
    for line in rest:
        print(f"{'':<10}  {line}")


def judge(expected: str, message: dict) -> None:
    if message.get("thinking"):
        say("reasoning", message["thinking"])
    say("answer", message["content"])
    if expected not in message["content"]:
        say("note", f"`{expected}` was expected (under-trained)")


def ask(url: str, model: str, question: str, expected: str, think: bool) -> None:
    print()
    say("question", question)
    judge(expected, chat(url, model, [{"role": "user", "content": question}], think))


def ask_with_tool(url: str, model: str, city: str) -> None:
    question = f"What is the weather in {city}?"
    messages = [{"role": "user", "content": question}]
    print()
    say("question", question)
    say("tool", json.dumps(WEATHER["function"]))
    message = chat(url, model, messages, False, [WEATHER])
    calls = message.get("tool_calls") or []
    for call in calls:
        say("call", f"{call['function']['name']}({json.dumps(call['function']['arguments'], ensure_ascii=False)})")
    if not calls:
        judge("a call of get_weather", message)
        return
    made = [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
    if made != [("get_weather", {"city": city})]:
        say("note", f"get_weather of {city} was expected (under-trained)")
    say("result", json.dumps(RESULT))
    results = [{"role": "tool", "tool_name": call["function"]["name"], "content": json.dumps(RESULT)} for call in calls]
    judge(f"{RESULT['temperature']} degrees and {RESULT['condition']} in {city}", chat(url, model, [*messages, message, *results], False, [WEATHER]))


def main() -> None:
    url, model = sys.argv[1:]
    ask(url, model, "What is the capital of Italy?", "Rome", think=False)
    ask(url, model, "What is 27 + 45?", "72", think=True)
    ask_with_tool(url, model, "Berlin")


if __name__ == "__main__":
    main()
