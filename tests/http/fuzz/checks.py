"""A body that fits the schema is taken, unless its fields do not fit together: this says when they do not."""

import schemathesis
from schemathesis import GenerationMode

ANSWER = 16  # tokens of a completion that says no max_tokens


def given(body, name, default=None):
    value = body.get(name)
    return default if value is None else value


def too_long(body, message):
    return message.startswith("This model's maximum context length is")


def empty(body, message):
    """A prompt without any token, such as a template may write, or one that is cut to nothing."""
    return "the prompt is empty" in message


# By the field that the error names: whether the body's fields really do not fit together.
REASONS = {
    "max_tokens": lambda b, m: too_long(b, m) or (b.get("max_tokens") == 0 and not b.get("echo")),
    "min_tokens": lambda b, m: b["min_tokens"] > given(b, "max_completion_tokens", given(b, "max_tokens", ANSWER)) and "at most max_tokens" in m,
    "n": lambda b, m: given(b, "n", 1) > 1 and b.get("temperature") == 0,
    "best_of": lambda b, m: b["best_of"] < given(b, "n", 1) or b.get("temperature") == 0 or bool(b.get("stream")),
    "length_penalty": lambda b, m: not b.get("use_beam_search"),
    "stream_options": lambda b, m: not b.get("stream"),
    "top_logprobs": lambda b, m: not b.get("logprobs"),
    "continue_final_message": lambda b, m: given(b, "add_generation_prompt", True) or "does not show" in m,
    "prompt": empty,
    # A template is a program: it may be none, or refuse what it is given.
    "chat_template": lambda b, m: "chat_template" in b,
    # The demo model's template shows no tools: it can be made to call, but cannot choose to.
    "logprob_token_ids": lambda b, m: given(b, "logprobs", False) is False,
    "tools": lambda b, m: "must be given" in m or "no way of calling tools" in m or "of another function" in m or "parameters:" in m or "strict cannot" in m,
    "tool_choice": lambda b, m: "does not have" in m or given(b, "tool_choice", {}) == "required",
    "functions": lambda b, m: "older name" in m or "must be given" in m or "of another function" in m,
    "function_call": lambda b, m: "older name" in m or "does not have" in m,
    "response_format": lambda b, m: "different forms" in m,
    "structured_outputs": lambda b, m: "different forms" in m,
    "messages": lambda b, m: "chat template" in m,
}


@schemathesis.check
def refusals_have_reasons(ctx, response, case):
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE or response.status_code != 400:
        return
    error = response.json()["error"]
    reason = REASONS.get(error["param"]) or REASONS.get((error["param"] or "").split("[")[0])
    assert reason and reason(case.body, error["message"]), f"refused without a reason: {error['message']}"
