"""Completions, as programs written with the official OpenAI client see them."""

import concurrent.futures

import pytest
from conftest import MODEL


def test_completion(client):
    done = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=12, temperature=0)
    assert done.choices[0].text and done.choices[0].finish_reason == "length"
    assert (done.usage.completion_tokens, done.object) == (12, "text_completion")


def test_prompts_come_in_four_forms(client):
    both = client.completions.create(model=MODEL, prompt=["Once", "The cat"], max_tokens=4, n=2, seed=1)
    assert [c.index for c in both.choices] == [0, 1, 2, 3]
    ids = client.completions.create(model=MODEL, prompt=[10, 11, 12], max_tokens=3)
    assert ids.usage.prompt_tokens == 3
    lists = client.completions.create(model=MODEL, prompt=[[10, 11], [12]], max_tokens=3)
    assert (len(lists.choices), lists.usage.prompt_tokens) == (2, 3)


def test_echo_and_logprobs(client):
    echo = client.completions.create(model=MODEL, prompt="The cat", max_tokens=2, echo=True, logprobs=3)
    logprobs = echo.choices[0].logprobs
    assert echo.choices[0].text.startswith("The cat") and logprobs.token_logprobs[0] is None
    lists = (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset)
    assert len({len(values) for values in lists}) == 1
    lengths = [len(token) for token in logprobs.tokens]
    assert logprobs.text_offset == [sum(lengths[:i]) for i in range(len(lengths))]


def test_best_of(client):
    best = client.completions.create(model=MODEL, prompt="One day", max_tokens=5, best_of=4, seed=3)
    assert len(best.choices) == 1 and best.usage.completion_tokens > 5


def test_stream_is_the_whole(client):
    asked = dict(model=MODEL, prompt=["One day", "The"], max_tokens=24, temperature=0.9, seed=5, n=2)
    whole = client.completions.create(**asked)
    texts, usage = [""] * 4, None
    for chunk in client.completions.create(stream=True, stream_options={"include_usage": True}, **asked):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [c.text for c in whole.choices]
    assert usage.total_tokens == whole.usage.total_tokens


def test_fields_of_vllm(client):
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "return_token_ids": True, "ignore_eos": True}
    done = client.completions.create(model=MODEL, prompt="The dog", max_tokens=6, extra_body=extra)
    assert len(done.choices[0].token_ids) == 6 and done.choices[0].prompt_token_ids
    again = client.completions.create(model=MODEL, prompt=done.choices[0].prompt_token_ids, max_tokens=6, seed=1,
                                      extra_body={"allowed_token_ids": [20, 21], "ignore_eos": True, "return_token_ids": True})
    assert set(again.choices[0].token_ids) <= {20, 21}


def test_many_clients_are_answered_as_one(client):
    def ask(seed):
        done = client.completions.create(model=MODEL, prompt="One day", max_tokens=16, seed=seed)
        return done.choices[0].text

    alone = [ask(seed) for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == alone


def score(client, context, continuation):
    """The log-likelihood of a continuation as lm-evaluation-harness's `local-completions` reads it: the answer's one
    token is dropped, and a token is the greedy one where its log-probability is the largest of those listed."""
    answer = client.completions.create(
        model=MODEL, prompt=[context + continuation], temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True)
    logprobs = answer.choices[0].logprobs
    tokens = logprobs.token_logprobs[len(context):-1]
    tops = logprobs.top_logprobs[len(context):-1]
    assert len(tokens) == len(continuation)
    return sum(tokens), all(token == max(top.values()) for token, top in zip(tokens, tops))


def test_a_continuation_is_scored_as_it_was_generated(client):
    greedy = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=10, temperature=0, logprobs=0,
                                       extra_body={"return_token_ids": True}).choices[0]
    assert score(client, greedy.prompt_token_ids, greedy.token_ids) == (sum(greedy.logprobs.token_logprobs), True)
    other = list(reversed(greedy.token_ids))
    total, is_greedy = score(client, greedy.prompt_token_ids, other)
    assert total < sum(greedy.logprobs.token_logprobs) and not is_greedy


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_a_prompt_is_scored_with_or_without_an_answer(client, max_tokens):
    choice = client.completions.create(model=MODEL, prompt="The little cat", max_tokens=max_tokens, echo=True, logprobs=0,
                                       temperature=0, extra_body={"return_token_ids": True}).choices[0]
    assert len(choice.token_ids) == max_tokens
    assert len(choice.logprobs.tokens) == len(choice.prompt_token_ids) + max_tokens
