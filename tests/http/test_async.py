"""The asynchronous client: many requests at a time, and requests that are cancelled."""

import asyncio

import openai
import pytest
from conftest import ASK, MODEL

LONG = {"max_tokens": 400, "extra_body": {"ignore_eos": True}}


@pytest.fixture
def run(url):
    def run(body):
        async def inside():
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0, timeout=30) as client:
                return await body(client)

        return asyncio.run(inside())

    return run


def test_many_at_a_time(run):
    async def body(client):
        def ask(seed):
            return client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=10, seed=seed)

        together = await asyncio.gather(*(ask(seed) for seed in range(16)))
        alone = [await ask(seed) for seed in range(16)]
        return [[done.choices[0].message.content for done in all] for all in (together, alone)]

    together, alone = run(body)
    assert together == alone and len(set(alone)) > 8


def test_streams(run):
    async def body(client):
        stream = await client.completions.create(model=MODEL, prompt="One day", max_tokens=8, stream=True)
        return [chunk.choices[0] async for chunk in stream]

    choices = run(body)
    assert "".join(c.text for c in choices) and [c.finish_reason for c in choices if c.finish_reason] == ["length"]


def test_cancelled_requests_free_what_they_held(run, idle):
    async def body(client):
        task = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=ASK, **LONG))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async for _ in await client.chat.completions.create(model=MODEL, messages=ASK, stream=True, **LONG):
            break
        with pytest.raises(openai.APITimeoutError):
            await client.with_options(timeout=0.02).completions.create(model=MODEL, prompt="a", **LONG)

    run(body)
    idle()
