"""What goes wrong, as the official OpenAI client tells it: by the class of exception, the field, and the next step."""

import contextlib
import threading
import time

import openai
import pytest
from conftest import ASK, MODEL, connect

LONG = {"max_tokens": 400, "extra_body": {"ignore_eos": True}}


def test_models(client):
    assert [m.id for m in client.models.list()] == ["demo", "demo-alias"]
    assert client.models.retrieve("demo-alias").owned_by == "rvllm"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_a_model_that_is_not_served(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=ASK)
    assert missing.value.body == {
        "message": "The model `gpt-4` does not exist.", "type": "NotFoundError", "param": "model", "code": 404}


@pytest.mark.parametrize("name, value", [("temperature", -1), ("top_p", 2), ("presence_penalty", 3), ("n", 0), ("stop", "")])
def test_a_field_that_is_refused(client, name, value):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=ASK, extra_body={name: value})
    assert (refused.value.status_code, refused.value.param, refused.value.type) == (400, name, "BadRequestError")


def test_a_prompt_that_is_too_long(client):
    with pytest.raises(openai.BadRequestError, match="maximum context length is 1024 tokens"):
        client.completions.create(model=MODEL, prompt="cat " * 2000)


def test_keys(url, client):
    for key in ("wrong", "secret2", "-"):
        with pytest.raises(openai.AuthenticationError):
            connect(url, api_key=key).models.list()
    assert client.with_options(default_headers={"X-Request-Id": "mine"}).models.with_raw_response.list().headers["x-request-id"] == "mine"


def test_what_is_not_served(client):
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings"):
        client.embeddings.create(model=MODEL, input="cat")


def test_raw_and_streaming_responses(client):
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK, max_tokens=3)
    done = raw.parse()
    assert done.id == f"chatcmpl-{raw.headers['x-request-id']}" and done._request_id == raw.headers["x-request-id"]
    with client.completions.with_streaming_response.create(model=MODEL, prompt="A", max_tokens=3, stream=True) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert list(answer.iter_lines())[-2:] == ["data: [DONE]", ""]


def test_timeouts_free_what_they_held(client, idle):
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.02).chat.completions.create(model=MODEL, messages=ASK, **LONG)
    idle()


def test_closed_streams_free_what_they_held(client, idle):
    stream = client.chat.completions.create(model=MODEL, messages=ASK, stream=True, **LONG)
    next(iter(stream))
    stream.close()
    idle()


def test_a_stream_tells_of_its_error(busy_url):
    with pytest.raises(openai.APIError, match="took too long"):
        for _ in connect(busy_url).completions.create(model="mock", prompt="a", stream=True, max_tokens=8000):
            pass
    with pytest.raises(openai.InternalServerError) as late:
        connect(busy_url).completions.create(model="mock", prompt="a", max_tokens=8000)
    assert (late.value.status_code, late.value.type) == (504, "TimeoutError")


@contextlib.contextmanager
def full(url):
    """Fills the mock's 256 places for sequences and its queue of one, but for one."""
    streams = [connect(url).completions.create(model="mock", prompt=["a"] * 128, stream=True, max_tokens=8000) for _ in range(2)]
    for stream in streams:
        next(iter(stream))
    yield
    for stream in streams:
        stream.close()


def test_a_full_queue(busy_url):
    ask = dict(model="mock", prompt=["a", "b"], max_tokens=1)
    with full(busy_url):
        with pytest.raises(openai.RateLimitError) as refused:
            connect(busy_url).completions.create(**ask)
        assert (refused.value.response.headers["retry-after"], refused.value.type) == ("1", "RateLimitError")
    with contextlib.ExitStack() as stack:
        stack.enter_context(full(busy_url))
        closing = stack.pop_all()
        threading.Thread(target=lambda: (time.sleep(0.3), closing.close())).start()
        assert len(connect(busy_url, max_retries=5).completions.create(**ask).choices) == 2


def test_no_server():
    with pytest.raises(openai.APIConnectionError):
        connect("http://127.0.0.1:9").models.list()
