"""Two servers, which run.sh starts: one on the demo model, and one on the mock engine that is slow and takes few requests."""

import os
import time
import urllib.request

import openai
import pytest

MODEL = "demo"
ASK = [{"role": "user", "content": "Tell me a story about a little cat."}]


def connect(url, **options):
    options = {"api_key": "secret", "max_retries": 0, "timeout": 30} | options
    return openai.OpenAI(base_url=f"{url}/v1", **options)


@pytest.fixture(scope="session")
def url():
    return os.environ["RVLLM_URL"]


@pytest.fixture(scope="session")
def busy_url():
    return os.environ["RVLLM_BUSY_URL"]


@pytest.fixture(scope="session")
def client(url):
    return connect(url)


@pytest.fixture
def idle(url):
    """Waits until no request runs and no block is held, which is what a client that has gone must leave."""

    def gauge(name):
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))

    def wait():
        for _ in range(200):
            if gauge("vllm:num_requests_running") == gauge("vllm:kv_cache_usage_perc") == 0:
                return
            time.sleep(0.05)
        pytest.fail("blocks are still held")

    return wait
