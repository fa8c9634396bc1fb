"""Chats, as programs written with the official OpenAI client see them."""

from conftest import ASK, MODEL


def test_chat(client):
    asked = dict(model=MODEL, messages=ASK, max_completion_tokens=20, seed=7)
    done, again = (client.chat.completions.create(**asked) for _ in range(2))
    assert done.choices[0].message.role == "assistant"
    assert done.choices[0].message.content == again.choices[0].message.content != ""
    assert done.id.startswith("chatcmpl-") and done.system_fingerprint and done.created > 0


def test_stream_is_the_whole(client):
    asked = dict(model=MODEL, messages=ASK, max_tokens=24, temperature=0.9, seed=5, n=2)
    whole = client.chat.completions.create(**asked)
    texts, usage = ["", ""], None
    for chunk in client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [c.message.content for c in whole.choices]
    assert usage.total_tokens == whole.usage.total_tokens


def test_the_stream_helper_gathers_the_answer(client):
    # The helper takes an answer that was cut off for an error.
    kinds, asked = set(), dict(model=MODEL, messages=ASK, max_tokens=400, seed=2, stop=["."])
    with client.chat.completions.stream(**asked) as stream:
        for event in stream:
            kinds.add(event.type)
    final = stream.get_final_completion()
    whole = client.chat.completions.create(**asked)
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason


def test_logprobs(client):
    done = client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3)
    for position in done.choices[0].logprobs.content:
        assert len(position.top_logprobs) == 3 and position.top_logprobs[0].token == position.token
        assert bytes(position.bytes).decode() == position.token


def test_usage_of_every_chunk(client):
    chunks = list(client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=6, stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True}))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 6


def test_fields_of_vllm(client):
    extra = {"add_generation_prompt": False, "continue_final_message": True, "return_prompt_text": True, "echo": True}
    messages = [*ASK, {"role": "assistant", "content": "Once there was"}]
    done = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4, extra_body=extra)
    assert done.prompt_text.endswith("Once there was")
    assert done.choices[0].message.content.startswith("Once there was")
    own = {"chat_template": "{{ word }} {{ messages[0].content }}", "chat_template_kwargs": {"word": "So"}, "return_prompt_text": True}
    done = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=4, extra_body=own)
    assert done.prompt_text == "So " + ASK[0]["content"]
