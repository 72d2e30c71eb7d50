"""Function calls: one or two tool schemas, the right call, then a sentence that says what the tool answered.

Each tool has several names and parameter names, so that the call must be copied from the schema and not remembered."""

import json
from dataclasses import dataclass
from random import Random
from typing import Callable

from .chat import question, thought
from .conversation import TRAIN, Conversation, assistant, of_split, request, user
from .facts import COUNTRIES, FACTS
from .talk import NAMES

CITIES = tuple(country[1] for country in COUNTRIES)
WEATHER = ("sunny", "cloudy", "rainy", "windy", "cold", "hot", "dry", "wet")
ROOMS = ("kitchen", "garden", "house", "tower", "hall", "bath")
ITEMS = ("bread", "milk", "a book", "a horse", "a lemon", "chocolate", "a bicycle", "salt", "a carrot", "gold",
         "a dog", "a cat", "a tomato", "a banana", "silver", "iron", "wood", "water", "a car", "a house")
TEXTS = ("Good morning", "I am late", "See you soon", "The bread is good", "Thank you", "I am happy", "The train is late", "Good night",
         "I am in Paris", "Come home")
SONGS = ("Moon", "Blue Sea", "Good Day", "Red Door", "Cold Night", "Old Tree", "Long Way", "Sunday")
MONEY = ("dollars", "euros", "pounds", "yen")


def _minutes(rng: Random) -> int:
    return rng.randrange(1, 61)


@dataclass(frozen=True)
class Parameter:
    names: tuple
    kind: str
    draw: Callable
    about: str


@dataclass(frozen=True)
class Tool:
    """`result` gives the tool's JSON answer; `says` is what the model says about it, of arguments (a0, a1, ..) and result keys."""

    names: tuple
    about: tuple
    parameters: tuple
    wordings: tuple
    result: Callable
    says: str


CITY = Parameter(("city", "location", "place"), "string", lambda rng: rng.choice(CITIES), "The name of the city")

TOOLS = (
    Tool(("get_weather", "get_current_weather", "weather"), ("Get the weather for a city", "Get the current weather for a city"), (CITY,),
         ("What is the weather in {a0}?", "How is the weather in {a0}?", "Weather in {a0}?", "Tell me the weather in {a0}.", "What's the weather like in {a0}?",
          "What is the weather today in {a0}?"),
         lambda rng: {"temperature": rng.randrange(1, 40), "condition": rng.choice(WEATHER)}, "It is {temperature} degrees and {condition} in {a0}."),
    Tool(("get_time", "current_time", "get_current_time"), ("Get the time in a city",), (CITY,),
         ("What time is it in {a0}?", "What is the time in {a0}?", "Time in {a0}?", "Tell me the time in {a0}.", "How late is it in {a0}?"),
         lambda rng: {"time": f"{rng.randrange(24):02}:{rng.randrange(60):02}"}, "It is {time} in {a0}."),
    Tool(("set_timer", "start_timer"), ("Set a timer",), (Parameter(("minutes", "time"), "integer", _minutes, "Number of minutes"),),
         ("Set a timer for {a0} minutes.", "Start a timer for {a0} minutes.", "Timer for {a0} minutes, please.", "I need a timer for {a0} minutes."),
         lambda rng: {"status": "started"}, "The timer for {a0} minutes is {status}."),
    Tool(("send_message", "send_text"), ("Send a message to a person",),
         (Parameter(("to", "person", "name"), "string", lambda rng: rng.choice(NAMES), "The name of the person"),
          Parameter(("text", "message"), "string", lambda rng: rng.choice(TEXTS), "The text of the message")),
         ("Send {a0} the message: {a1}", "Write to {a0}: {a1}", "Send a message to {a0}: {a1}", "Tell {a0} this: {a1}"),
         lambda rng: {"status": rng.choice(("sent", "late"))}, "The message to {a0} is {status}."),
    Tool(("get_price", "price"), ("Get the price of a thing",),
         (Parameter(("item", "thing", "name"), "string", lambda rng: rng.choice(ITEMS), "The name of the thing"),),
         ("What is the price of {a0}?", "How much is {a0}?", "Price of {a0}?", "Tell me the price of {a0}."),
         lambda rng: {"price": rng.randrange(1, 100), "currency": rng.choice(MONEY)}, "The price of {a0} is {price} {currency}."),
    Tool(("play_music", "play_song"), ("Play a song",),
         (Parameter(("song", "title", "name"), "string", lambda rng: rng.choice(SONGS), "The name of the song"),),
         ("Play {a0}.", "Play the song {a0}.", "I want to hear {a0}.", "Please play {a0}."),
         lambda rng: {"status": rng.choice(("playing", "started"))}, "The song {a0} is {status}."),
    Tool(("add_numbers", "add", "sum"), ("Add two numbers",),
         (Parameter(("a", "x", "first"), "integer", lambda rng: rng.randrange(100, 1000), "The first number"),
          Parameter(("b", "y", "second"), "integer", lambda rng: rng.randrange(100, 1000), "The second number")),
         ("What is {a0} + {a1}?", "Add {a0} and {a1}.", "Calculate {a0} + {a1}.", "What is {a0} plus {a1}?"),
         lambda rng: {"result": rng.randrange(200, 2000)}, "The result is {result}."),
    Tool(("set_light", "switch_light"), ("Switch the light of a room on or off",),
         (Parameter(("room", "place"), "string", lambda rng: rng.choice(ROOMS), "The name of the room"),
          Parameter(("on", "light"), "boolean", lambda rng: rng.random() < 0.5, "Light on or off")),
         ("Switch the light in the {a0} {onoff}.", "Light {onoff} in the {a0}.", "Turn the light in the {a0} {onoff}, please."),
         lambda rng: {"status": "done"}, "The light in the {a0} is {onoff}."),
    Tool(("find_train", "get_train"), ("Find a train between two cities",),
         (Parameter(("from", "start"), "string", lambda rng: rng.choice(CITIES), "The first city"),
          Parameter(("to", "end"), "string", lambda rng: rng.choice(CITIES), "The last city")),
         ("Find a train from {a0} to {a1}.", "Which train goes from {a0} to {a1}?", "I need a train from {a0} to {a1}.", "Train from {a0} to {a1}?"),
         lambda rng: {"time": f"{rng.randrange(24):02}:{rng.randrange(60):02}"}, "The train from {a0} to {a1} goes at {time}."),
)


@dataclass
class Offer:
    """A tool as one conversation declares it."""

    tool: Tool
    name: str
    keys: list
    schema: dict


def offer(rng: Random, tool: Tool) -> Offer:
    """The first names are the usual ones and come in most conversations."""
    usual = rng.random() < 0.7
    pick = (lambda names: names[0]) if usual else rng.choice
    keys = [pick(parameter.names) for parameter in tool.parameters]
    described = rng.random() < 0.4
    properties = {}
    for key, parameter in zip(keys, tool.parameters):
        properties[key] = {"type": parameter.kind} | ({"description": parameter.about} if described else {})
    function = {"name": pick(tool.names), "description": pick(tool.about),
                "parameters": {"type": "object", "properties": properties, "required": keys}}
    return Offer(tool, function["name"], keys, {"type": "function", "function": function})


def arguments(rng: Random, tool: Tool, split: str) -> list:
    """Values for the parameters; a combination of the held-out tenth is never called in training."""
    return of_split(rng, split, lambda rng: [parameter.draw(rng) for parameter in tool.parameters], lambda values: ("tool", tool.names[0], *values))


def tools(rng: Random, split: str) -> Conversation:
    think = rng.random() < 0.4
    offers = [offer(rng, tool) for tool in rng.sample(TOOLS, k=rng.choice((1, 2, 2)))]
    if len({o.name for o in offers}) < len(offers):
        return tools(rng, split)
    messages = [{"role": "system", "content": "You are a helpful assistant."}] if rng.random() < 0.2 else []
    for _ in range(rng.choice((0, 2, 3, 4)) if split == TRAIN else rng.choice((0, 1, 2))):
        if rng.random() < 0.15:
            fact = rng.choice(FACTS)
            messages += [user(question(rng, fact)), assistant(fact.answer, thought(fact) if think else None)]
        else:
            messages += _turns(rng, rng.choice(offers), think, TRAIN)[0]
    turns, call = _turns(rng, rng.choice(offers), think, split)
    said = turns[-1]["content"]
    if split != TRAIN and rng.random() < 0.75:
        # The case ends in the call; otherwise in the sentence about the result.
        messages += turns[:2]
        expected, kind = {"tool": call}, "call"
    else:
        messages += turns
        expected, kind = {"equals": said}, "result"
    return Conversation("tools", request(messages, think, tools=[o.schema for o in offers]), expected,
                        ("tool", call["name"], *call["arguments"].values()), {"kind": kind, "think": think, "tools": len(offers)})


def _turns(rng: Random, chosen: Offer, think: bool, split: str):
    """Question, call, result and answer as messages; and the call."""
    tool, values = chosen.tool, arguments(rng, chosen.tool, split)
    names = {f"a{i}": value for i, value in enumerate(values)}
    names["onoff"] = "on" if values[-1] is True else "off"
    call = {"name": chosen.name, "arguments": dict(zip(chosen.keys, values))}
    answered = tool.result(rng)
    said = tool.says.format(**names, **answered)
    result = json.dumps(answered)
    turns = [user(rng.choice(tool.wordings).format(**names)),
             assistant("", f"I call {chosen.name}." if think else None, [{"function": call}]),
             {"role": "tool", "tool_name": chosen.name, "content": result},
             assistant(said, f"The tool {chosen.name} answered." if think else None)]
    return turns, call
