// What programs written with the official OpenAI client for Node see of the server.
import assert from "node:assert/strict"
import { test } from "node:test"
import { setTimeout as sleep } from "node:timers/promises"
import OpenAI from "openai"
import { zodResponseFormat } from "openai/helpers/zod"
import { z } from "zod"

const { RVLLM_URL: url, RVLLM_BUSY_URL: busyUrl } = process.env
const connect = (base, options) => new OpenAI({ baseURL: `${base}/v1`, apiKey: "secret", maxRetries: 0, timeout: 30_000, ...options })
const client = connect(url)
const model = "demo"
const messages = [{ role: "user", content: "Tell me a story about a little cat." }]
const long = { model, messages, max_tokens: 400, ignore_eos: true }

async function gauge(name) {
  const lines = (await (await fetch(`${url}/metrics`)).text()).split("\n").filter(l => l.startsWith(`${name}{`))
  return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0)
}

// What a client that has gone must leave: no request that runs, no block that is held.
async function idle() {
  for (let i = 0; i < 200; i++) {
    if ((await gauge("vllm:num_requests_running")) === 0 && (await gauge("vllm:kv_cache_usage_perc")) === 0) return
    await sleep(50)
  }
  assert.fail("blocks are still held")
}

test("models", async () => {
  const names = []
  for await (const m of client.models.list()) names.push(m.id)
  assert.deepEqual(names, ["demo", "demo-alias"])
  assert.equal((await client.models.retrieve("demo-alias")).owned_by, "rvllm")
})

test("completions", async () => {
  const done = await client.completions.create({ model, prompt: ["Once", "The cat"], max_tokens: 6, n: 2, seed: 1 })
  assert.deepEqual(done.choices.map(c => c.index), [0, 1, 2, 3])
  assert.equal(done.usage.completion_tokens, 24)
  const echo = await client.completions.create({ model, prompt: "The cat", max_tokens: 2, echo: true, logprobs: 2 })
  assert.ok(echo.choices[0].text.startsWith("The cat"))
  assert.equal(echo.choices[0].logprobs.token_logprobs[0], null)
})

test("a streamed chat is the whole chat", async () => {
  const asked = { model, messages, max_tokens: 24, temperature: 0.9, seed: 5, n: 2 }
  const whole = await client.chat.completions.create(asked)
  const texts = ["", ""]
  let usage = null
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } })) {
    usage = chunk.usage ?? usage
    for (const choice of chunk.choices) texts[choice.index] += choice.delta.content ?? ""
  }
  assert.deepEqual(texts, whole.choices.map(c => c.message.content))
  assert.deepEqual(usage.total_tokens, whole.usage.total_tokens)
})

test("the stream helper gathers the answer", async () => {
  const asked = { model, messages, max_tokens: 400, seed: 2, stop: ["."] }
  let text = ""
  const stream = client.chat.completions.stream(asked).on("content", delta => { text += delta })
  const content = await stream.finalContent()
  assert.equal(content, text)
  assert.equal(content, (await client.chat.completions.create(asked)).choices[0].message.content)
})

test("logprobs", async () => {
  const done = await client.chat.completions.create({ model, messages, max_tokens: 5, temperature: 0, logprobs: true, top_logprobs: 3 })
  for (const position of done.choices[0].logprobs.content) {
    assert.equal(position.top_logprobs.length, 3)
    assert.equal(position.top_logprobs[0].token, position.token)
    assert.equal(Buffer.from(position.bytes).toString(), position.token)
  }
})

test("fields of vLLM", async () => {
  const done = await client.completions.create({ model, prompt: "The dog", max_tokens: 6, top_k: 5, return_token_ids: true, ignore_eos: true })
  assert.equal(done.choices[0].token_ids.length, 6)
})

test("errors", async () => {
  await assert.rejects(client.chat.completions.create({ model: "gpt-4", messages }), error => {
    assert.ok(error instanceof OpenAI.NotFoundError)
    assert.deepEqual([error.status, error.param, error.type], [404, "model", "NotFoundError"])
    return true
  })
  await assert.rejects(client.chat.completions.create({ model, messages, temperature: -1 }), error => {
    assert.ok(error instanceof OpenAI.BadRequestError)
    assert.equal(error.param, "temperature")
    return true
  })
  await assert.rejects(connect(url, { apiKey: "wrong" }).models.list(), OpenAI.AuthenticationError)
  await assert.rejects(client.embeddings.create({ model, input: "cat" }), OpenAI.NotFoundError)
  await assert.rejects(connect("http://127.0.0.1:9").models.list(), OpenAI.APIConnectionError)
})

test("a full queue", async () => {
  const busy = connect(busyUrl)
  // Two of these fill the mock's 256 places for sequences; its queue of one is left.
  const fill = () => busy.completions.create({ model: "mock", prompt: Array(128).fill("a"), max_tokens: 8000, stream: true })
  const streams = await Promise.all([fill(), fill()])
  const asked = { model: "mock", prompt: ["a", "b"], max_tokens: 1 }
  await assert.rejects(busy.completions.create(asked), OpenAI.RateLimitError)
  const patient = connect(busyUrl, { maxRetries: 5 }).completions.create(asked)
  streams.forEach(stream => stream.controller.abort())
  assert.equal((await patient).choices.length, 2)
})

test("timeouts and aborted requests free what they held", async () => {
  await assert.rejects(client.chat.completions.create(long, { timeout: 20 }), OpenAI.APIConnectionTimeoutError)
  const abort = new AbortController()
  const pending = client.chat.completions.create(long, { signal: abort.signal })
  setTimeout(() => abort.abort(), 30)
  await assert.rejects(pending, OpenAI.APIUserAbortError)
  const stream = await client.chat.completions.create({ ...long, stream: true })
  for await (const _ of stream) break
  await idle()
})

test("raw responses", async () => {
  const { data, response, request_id } = await client.chat.completions.create({ model, messages, max_tokens: 2 }).withResponse()
  assert.equal(data.id, `chatcmpl-${response.headers.get("x-request-id")}`)
  assert.equal(request_id, response.headers.get("x-request-id"))
})

const Animal = z.object({
  name: z.string(),
  kind: z.enum(["cat", "dog", "mouse"]),
  friends: z.array(z.enum(["cat", "dog", "bird"])),
})

test("an answer in the form of a zod type", async () => {
  const response_format = zodResponseFormat(Animal, "animal")
  const done = await client.chat.completions.parse({ model, messages, response_format, max_tokens: 400, temperature: 0, seed: 1 })
  assert.ok(["cat", "dog", "mouse"].includes(done.choices[0].message.parsed.kind))
})
