"""Answers in the form of a Pydantic type, through the official OpenAI client's `parse`. Nothing in it is unbounded: with whitespace
everywhere it still ends within 900 tokens."""

from typing import Literal

import pydantic
import pytest
from conftest import ASK, MODEL


class Animal(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    kind: Literal["cat", "dog", "mouse"]
    age: int = pydantic.Field(ge=0, le=9)
    friends: list[Literal["cat", "dog", "bird"]] = pydantic.Field(max_length=2)


@pytest.mark.parametrize("seed", range(4))
def test_parse(client, seed):
    done = client.chat.completions.parse(
        model=MODEL, messages=ASK, response_format=Animal, max_tokens=900, temperature=1, seed=seed)
    assert isinstance(done.choices[0].message.parsed, Animal), done.choices[0].message.content


def test_parse_a_stream(client):
    with client.chat.completions.stream(model=MODEL, messages=ASK, response_format=Animal, max_tokens=900, seed=1) as stream:
        for _ in stream:
            pass
    assert isinstance(stream.get_final_completion().choices[0].message.parsed, Animal)


def test_json_object(client):
    done = client.chat.completions.create(
        model=MODEL, messages=ASK, response_format={"type": "json_object"}, max_tokens=300, seed=3)
    if done.choices[0].finish_reason == "stop":
        pydantic.TypeAdapter(dict).validate_json(done.choices[0].message.content)
    else:
        assert done.choices[0].message.content.lstrip().startswith("{")
