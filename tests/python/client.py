"""The official client against a running server (OLLAMA_HOST): every call that our users' programs make through it.

Uses only what `ollama` itself depends on. Any wrong answer is an AssertionError and so a non-zero exit.
"""

import sys
import time

import httpx
import ollama
import pydantic

OPTIONS = {"num_predict": 16, "seed": 7, "temperature": 0.8}
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]


def names(client):
    return [model.model for model in client.list().models]


def create(client, gguf):
    digest = client.create_blob(gguf)
    events = list(client.create(model="tiny", files={"tiny.gguf": digest}, parameters={"top_k": 20}, stream=True))
    assert events[-1].status == "success", events
    assert names(client) == ["tiny:latest"]


def show(client):
    shown = client.show("tiny")
    assert shown.modelinfo["general.architecture"] == "deepseek4", shown.modelinfo
    assert "completion" in shown.capabilities, shown.capabilities
    assert "tools" in shown.capabilities and "thinking" in shown.capabilities, shown.capabilities
    assert "top_k" in shown.parameters and "20" in shown.parameters, shown.parameters


def chat(client):
    whole = client.chat(model="tiny", messages=MESSAGES, options=OPTIONS, think=False)
    assert whole.done and whole.done_reason in ("stop", "length"), whole
    assert whole.message.role == "assistant" and whole.message.content, whole
    assert 0 < whole.eval_count <= 16 and whole.prompt_eval_count > 0, whole
    assert whole.total_duration > 0 and whole.load_duration > 0, whole

    parts = list(client.chat(model="tiny", messages=MESSAGES, options=OPTIONS, think=False, stream=True))
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True], parts
    assert len(parts) > 2, parts
    assert "".join(part.message.content for part in parts) == whole.message.content, "same seed, same answer"

    thought = client.chat(model="tiny", messages=MESSAGES, options=OPTIONS, think=True)
    assert thought.message.thinking, "random weights hardly ever close their reasoning within 16 tokens"


def generate(client):
    whole = client.generate(model="tiny", prompt="Once upon a time", options=OPTIONS, think=False)
    assert whole.done and whole.response and whole.context, whole
    parts = list(client.generate(model="tiny", prompt="Once upon a time", options=OPTIONS, think=False, stream=True))
    assert "".join(part.response for part in parts) == whole.response, "same seed, same answer"
    assert parts[-1].context == whole.context
    onward = client.generate(model="tiny", prompt="And then?", context=whole.context, options=OPTIONS, think=False)
    assert list(onward.context)[: len(whole.context)] == list(whole.context), "the conversation goes on"
    raw = client.generate(model="tiny", prompt="abc", raw=True, options=OPTIONS | {"stop": ["\x00"]}, logprobs=True, top_logprobs=2)
    assert raw.context is None and len(raw.logprobs) == raw.eval_count, raw
    assert all(len(token.top_logprobs) == 2 for token in raw.logprobs), raw


def loaded(client):
    assert [model.model for model in client.ps().models] == ["tiny:latest"]
    gone = client.generate(model="tiny", keep_alive=0)
    assert gone.done_reason == "unload", gone
    for _ in range(100):
        if not client.ps().models:
            return
        time.sleep(0.1)
    raise AssertionError("the model is still loaded")


def copy_and_delete(client):
    assert client.copy("tiny", "other:v1").status == "success"
    assert sorted(names(client)) == ["other:v1", "tiny:latest"]
    for name in ("tiny", "other:v1"):
        assert client.delete(name).status == "success"
    assert names(client) == []


def errors(client):
    for call, status, text in (
        (lambda: client.chat(model="missing", messages=MESSAGES), 404, "model 'missing' not found"),
        (lambda: client.generate(model="missing", prompt="x"), 404, "model 'missing' not found"),
        (lambda: client.show("missing"), 404, "model 'missing:latest' not found"),
        (lambda: client.copy("missing", "x"), 404, 'model "missing" not found'),
        (lambda: client.delete("missing"), 404, "model 'missing' not found"),
        (lambda: client.generate(model="tiny", prompt="x", options={"top_k": "many"}), 500, 'option "top_k" must be of type integer'),
    ):
        try:
            call()
        except ollama.ResponseError as error:
            assert (error.status_code, error.error) == (status, text), (error.status_code, error.error)
        else:
            raise AssertionError(f"no error, expected: {text}")


def main():
    client = ollama.Client()
    for step in (create, show, chat, generate, errors, loaded, copy_and_delete):
        step(client, sys.argv[1]) if step is create else step(client)
        print(f"ok: {step.__name__}", flush=True)
    print(f"passed with ollama {httpx_agent(client)}, httpx {httpx.__version__}, pydantic {pydantic.VERSION}")


def httpx_agent(client):
    """The client's own words for its version: `ollama-python/0.6.3 (...)`."""
    return client._client.headers["user-agent"]


main()
