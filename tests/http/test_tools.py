"""Tools: calls that are required or forced by name, at once and in pieces, their results, and what is refused."""

import json
from typing import Literal

import openai
import pytest
from conftest import ASK, MODEL
from pydantic import BaseModel

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bern", "Chur"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def ask(client, **more):
    asked = {"model": MODEL, "messages": ASK, "tools": [WEATHER, CLOCK], "max_completion_tokens": 200, "temperature": 0.7, "seed": 3}
    return client.chat.completions.create(**(asked | more))


def check_arguments(call):
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_time":
        assert arguments == {}
    else:
        assert call.function.name == "get_weather" and set(arguments) == {"city", "days"}
        assert arguments["city"] in ("Bern", "Chur") and 1 <= arguments["days"] <= 7


def test_a_call_by_name(client):
    for seed in range(4):
        choice = ask(client, tool_choice=NAMED, seed=seed).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("stop", None)
        [call] = choice.message.tool_calls
        assert call.type == "function" and call.id.startswith("call_")
        check_arguments(call)
        assert call.function.name == "get_weather"


def test_a_required_call(client):
    ids = set()
    for seed in range(4):
        choice = ask(client, tool_choice="required", parallel_tool_calls=False, seed=seed).choices[0]
        assert choice.finish_reason == "tool_calls"
        [call] = choice.message.tool_calls
        check_arguments(call)
        ids.add(call.id)
    assert len(ids) == 4


def test_parallel_calls(client):
    # a small model may go on calling until it is cut short: all calls but the last are whole
    most = 0
    for seed in range(4):
        choice = ask(client, tool_choice="required", seed=seed, max_completion_tokens=300, temperature=1).choices[0]
        calls = choice.message.tool_calls
        whole = calls if choice.finish_reason == "tool_calls" else calls[:-1]
        for call in whole:
            check_arguments(call)
        assert len({call.id for call in calls}) == len(calls)
        most = max(most, len(whole))
    assert most >= 1


@pytest.mark.parametrize("choice", [NAMED, "required"])
def test_a_stream_is_the_whole(client, choice):
    asked = {"tool_choice": choice, "temperature": 0}
    whole = ask(client, **asked).choices[0]
    calls, finish = {}, None
    for chunk in ask(client, stream=True, **asked):
        for piece in chunk.choices:
            finish = piece.finish_reason or finish
            for delta in piece.delta.tool_calls or []:
                if delta.id:
                    calls[delta.index] = [delta.function.name, ""]
                calls[delta.index][1] += delta.function.arguments
    expected = [[call.function.name, call.function.arguments] for call in whole.message.tool_calls]
    assert (list(calls.values()), finish) == (expected, whole.finish_reason)


def test_results_go_back(client):
    message = ask(client, tool_choice=NAMED).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Rain."}
    again = ask(client, messages=[*ASK, message, result], tool_choice="none", max_completion_tokens=8)
    assert again.choices[0].message.content and not again.choices[0].message.tool_calls


class GetWeather(BaseModel):
    """The weather in a city."""

    city: Literal["Bern", "Chur"]
    unit: Literal["C", "F"]


def test_pydantic_tools(client):
    tool = openai.pydantic_function_tool(GetWeather)
    choice = {"type": "function", "function": {"name": "GetWeather"}}
    done = client.chat.completions.parse(model=MODEL, messages=ASK, tools=[tool], tool_choice=choice, max_completion_tokens=200)
    parsed = done.choices[0].message.tool_calls[0].function.parsed_arguments
    assert isinstance(parsed, GetWeather) and parsed.city in ("Bern", "Chur")
    with client.chat.completions.stream(
        model=MODEL, messages=ASK, tools=[tool], tool_choice=choice, max_completion_tokens=200
    ) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert len(done) == 1 and isinstance(done[0].parsed_arguments, GetWeather)


def test_functions(client):
    asked = {"model": MODEL, "messages": ASK, "functions": [WEATHER["function"]], "max_completion_tokens": 200}
    choice = client.chat.completions.create(function_call={"name": "get_weather"}, **asked).choices[0]
    assert choice.finish_reason == "function_call" and not choice.message.tool_calls
    check_arguments(type("Call", (), {"function": choice.message.function_call}))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": openai.NOT_GIVEN, "tool_choice": "required"}, "tools"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "dance"}}}, "tool_choice"),
        ({"tools": [CLOCK, CLOCK], "tool_choice": "required"}, "tools[1].function.name"),
        # the demo model's template shows no way of calling tools
        ({"tool_choice": "auto"}, "tools"),
    ],
)
def test_what_is_refused(client, fields, param):
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, **fields)
    assert error.value.param == param
