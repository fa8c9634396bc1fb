"""Structured output on the demo model at temperature 1: every answer fulfils its schema.

`schemas.json` has the schemas, in the style of public sets: nested, enum, const, anyOf, oneOf, allOf, pattern, format, $ref (recursive,
too), bounds, tuples, maps. Each is bounded, or has leaves enough that no answer nests for long whatever is drawn, so that an answer ends well
before `max_tokens`; one that is cut by `max_tokens` fails the test as an invalid one does. The validator is an implementation of its own (jsonschema_rs), formats included.
"""

import concurrent.futures
import json
import pathlib

import jsonschema_rs
import openai
import pydantic
import pytest

from conftest import connect

SCHEMAS = json.loads((pathlib.Path(__file__).parent / "schemas.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def client(url):
    return connect(url, timeout=100)


def answer(client, index, entry):
    chat = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": f"Give me {entry['name']} as JSON."}],
        response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": entry["schema"]}},
        temperature=1,
        seed=index,
        max_tokens=900,
    )
    return chat.choices[0]


def problem(entry, choice):
    """What is wrong with an answer; None where nothing is."""
    if choice.finish_reason != "stop":
        return f"finished by {choice.finish_reason}"
    checker = jsonschema_rs.validator_for(entry["schema"], validate_formats=True)
    try:
        errors = [e.message for e in checker.iter_errors(json.loads(choice.message.content))]
    except json.JSONDecodeError as e:
        errors = [str(e)]
    return "; ".join(errors) or None


def test_every_answer_fulfils_its_schema(client):
    assert len(SCHEMAS) >= 200
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        choices = list(pool.map(lambda item: answer(client, *item), enumerate(SCHEMAS)))
    wrong = {e["name"]: (problem(e, c), c.message.content) for e, c in zip(SCHEMAS, choices) if problem(e, c)}
    assert not wrong, json.dumps(wrong, indent=1, ensure_ascii=False)


def test_an_answer_repeats_and_streams(client):
    entry = next(e for e in SCHEMAS if e["name"] == "an order")
    whole = answer(client, 3, entry)
    assert answer(client, 3, entry).message.content == whole.message.content
    stream = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": f"Give me {entry['name']} as JSON."}],
        extra_body={"structured_outputs": {"json": entry["schema"]}},
        temperature=1,
        seed=3,
        max_tokens=900,
        stream=True,
    )
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == whole.message.content


@pytest.mark.parametrize(
    ("field", "value", "holds"),
    [
        ("structured_outputs", {"regex": "[0-9]{3}-[0-9]{4}"}, lambda t: len(t) == 8 and t[3] == "-"),
        ("structured_outputs", {"choice": ["positive", "negative"]}, lambda t: t in ("positive", "negative")),
        ("structured_outputs", {"grammar": 'root ::= [0-9] (" + " rest)?\nrest ::= [0-9] (" + " [0-9])?'}, lambda t: t.replace(" + ", "").isdigit()),
        ("structured_outputs", {"grammar": 'start: "a" ("b" | "c")+ "d"'}, lambda t: t[0] == "a" and t[-1] == "d"),
        ("guided_choice", ["ja", "nein"], lambda t: t in ("ja", "nein")),
    ],
)
def test_other_forms(client, field, value, holds):
    for seed in range(3):
        done = client.completions.create(
            model="demo", prompt="Answer: ", max_tokens=500, temperature=1, seed=seed, extra_body={field: value}
        )
        assert done.choices[0].finish_reason == "stop" and holds(done.choices[0].text), done.choices[0]


def test_parse_gives_the_class(client):
    class Point(pydantic.BaseModel):
        x: int
        y: int
        label: str | None

    done = client.chat.completions.parse(
        model="demo",
        messages=[{"role": "user", "content": "Give me a point."}],
        response_format=Point,
        temperature=0,
        max_tokens=400,
    )
    point = done.choices[0].message.parsed
    assert done.choices[0].finish_reason == "stop" and isinstance(point, Point)


def test_what_cannot_be_honoured_is_named(client):
    schema = {"type": "object", "properties": {"a": {"not": {"type": "null"}}}}
    with pytest.raises(openai.BadRequestError) as refused:
        answer(client, 0, {"name": "x", "schema": schema})
    assert refused.value.param == "response_format" and "keyword not at /properties/a" in refused.value.message
