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


FORMS = ["response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"]


def several_forms(body, message):
    return "both say what form" in message and sum(body.get(name) is not None for name in FORMS) > 1


KINDS = ["json", "regex", "choice", "grammar", "json_object", "structural_tag"]


def not_one_kind(body, message):
    form = given(body, "structured_outputs", {})
    kinds = [name for name in KINDS if form.get(name) is not None and (name, form[name]) != ("json_object", False)]
    return "structured output is asked for by" in message and len(kinds) != 1


def unreadable(body, message):
    """A grammar is a program: a text that is none is told of as such."""
    return "cannot be followed" in message


def a_form_and_beams(body, message):
    return "whose beams follow no grammar" in message and body.get("use_beam_search")


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
    "max_completion_tokens": too_long,
    "prompt": lambda b, m: empty(b, m) or too_long(b, m),
    # A template is a program: it may be none, or refuse what it is given.
    "chat_template": lambda b, m: "chat_template" in b,
    # The demo model's template shows no tools: it can be made to call, but cannot choose to.
    "logprob_token_ids": lambda b, m: given(b, "logprobs", False) is False,
    "tools": lambda b, m: "must be given" in m or "no way of calling tools" in m or "of another function" in m or "parameters:" in m or "strict cannot" in m,
    "tool_choice": lambda b, m: "does not have" in m or given(b, "tool_choice", {}) == "required",
    "functions": lambda b, m: "older name" in m or "must be given" in m or "of another function" in m,
    "function_call": lambda b, m: "older name" in m or "does not have" in m,
    "response_format": lambda b, m: "different forms" in m or unreadable(b, m) or ("needs json_schema.schema" in m and not (b["response_format"].get("json_schema") or {}).get("schema")),
    "structured_outputs": lambda b, m: "different forms" in m or not_one_kind(b, m) or several_forms(b, m) or unreadable(b, m) or a_form_and_beams(b, m),
    "guided_json": lambda b, m: several_forms(b, m) or unreadable(b, m),
    "guided_regex": lambda b, m: several_forms(b, m) or unreadable(b, m),
    "guided_choice": several_forms,
    "guided_grammar": lambda b, m: several_forms(b, m) or unreadable(b, m),
    "thinking_token_budget": lambda b, m: "how the model marks its reasoning" in m or "with use_beam_search" in m,
    "repetition_detection.min_pattern_size": lambda b, m: "at most max_pattern_size" in m,
    "messages": lambda b, m: "chat template" in m or too_long(b, m),
}


@schemathesis.check
def refusals_have_reasons(ctx, response, case):
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE or response.status_code != 400:
        return
    error = response.json()["error"]
    reason = REASONS.get(error["param"]) or REASONS.get((error["param"] or "").split("[")[0])
    assert reason and reason(case.body, error["message"]), f"refused without a reason: {error['message']}"


@schemathesis.check
def only_deadlines_of_clients_pass(ctx, response, case):
    """A request is given up only where it says when, and not before."""
    if response.status_code == 408:
        seconds = float(case.headers["X-Request-Timeout"])
        assert response.elapsed >= seconds, f"given up after {response.elapsed} of {seconds} s"
