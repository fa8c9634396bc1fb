"""`rvllm run-batch`: OpenAI's batch files, answered as the server answers, and taken up again where they stopped."""

import json
import os
import subprocess

RVLLM = os.environ.get("RVLLM", "target/release/rvllm")
ARTIFACT = os.environ.get("ARTIFACT", "target/demo.rvllm")


def line(custom_id, url, **body):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}) + "\n"


def run(directory, *flags):
    command = [RVLLM, "run-batch", "-i", directory / "in.jsonl", "-o", directory / "out.jsonl", "--model", ARTIFACT]
    return subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60)


def answers(directory):
    return [json.loads(text) for text in (directory / "out.jsonl").read_text().splitlines()]


def write(directory, n=24):
    texts = [line(f"r{i}", "/v1/completions", prompt="Once", max_tokens=8, seed=i, temperature=1) for i in range(n)]
    messages = [{"role": "user", "content": "Tell me a story."}]
    texts.append(line("chat", "/v1/chat/completions", messages=messages, max_tokens=4, seed=1))
    texts.append(line("bad", "/v1/completions", prompt="x", temperature=-1))
    (directory / "in.jsonl").write_text("".join(texts))


def test_every_request_is_answered_in_order(tmp_path):
    write(tmp_path)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    lines = answers(tmp_path)
    assert [a["custom_id"] for a in lines] == [f"r{i}" for i in range(24)] + ["chat", "bad"]
    assert all(a["response"]["status_code"] == 200 and a["error"] is None for a in lines[:-1])
    assert lines[-2]["response"]["body"]["object"] == "chat.completion"
    assert lines[-1]["response"]["status_code"] == 400 and lines[-1]["error"]["param"] == "temperature"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_an_interrupted_run_is_continued_and_nothing_is_computed_twice(tmp_path):
    write(tmp_path)
    assert run(tmp_path).returncode == 0
    whole = (tmp_path / "out.jsonl").read_text().splitlines()
    again = tmp_path / "again"
    again.mkdir()
    write(again)
    # What a killed run leaves: its header, some lines in the order in which they finished, and a torn one.
    assert run(again, "--resume").returncode == 0
    header = partial_header(again)
    kept = [whole[5], whole[2]]
    (again / "out.jsonl.partial").write_text(header + "\n".join(kept) + "\n" + whole[7][:40])
    (again / "out.jsonl").unlink()
    refused = run(again)
    assert refused.returncode == 2 and "--resume" in refused.stderr
    done = run(again, "--resume")
    assert done.returncode == 0, done.stderr
    lines = (again / "out.jsonl").read_text().splitlines()
    assert lines[5] == whole[5] and lines[2] == whole[2]
    texts = [json.loads(a)["response"]["body"].get("choices") for a in lines]
    assert texts == [json.loads(a)["response"]["body"].get("choices") for a in whole]


def test_fields_that_are_ignored_are_told_of(tmp_path):
    texts = [line(f"r{i}", "/v1/completions", prompt="Once", max_tokens=2, stream=None, temprature=1) for i in range(3)]
    (tmp_path / "in.jsonl").write_text("".join(texts))
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning: 3 of the requests: ignored unknown fields: temprature · help: --strict refuses them" in done.stderr
    assert all(a["response"]["status_code"] == 200 for a in answers(tmp_path))
    (tmp_path / "out.jsonl").unlink()
    done = run(tmp_path, "--strict")
    assert [a["error"]["param"] for a in answers(tmp_path)] == ["temprature"] * 3, done.stderr


def partial_header(directory):
    """The header that a run of this input writes: taken from one that is stopped at once."""
    command = [RVLLM, "run-batch", "-i", directory / "in.jsonl", "-o", directory / "probe.jsonl", "--model", ARTIFACT]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = directory / "probe.jsonl.partial"
    try:
        while process.poll() is None:
            if partial.exists() and (text := partial.read_text()) and "\n" in text:
                return text.splitlines()[0] + "\n"
    finally:
        process.kill()
        process.wait()
        partial.unlink(missing_ok=True)
    raise AssertionError("the run ended before its header was seen")


def test_a_file_with_errors_is_refused_whole(tmp_path):
    write(tmp_path)
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write(line("r1", "/v1/completions", prompt="x") + line("e", "/v1/embeddings", input="x"))
    done = run(tmp_path)
    assert done.returncode == 2
    assert "custom_id `r1` is that of line 2, too" in done.stderr and "/v1/embeddings" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()
