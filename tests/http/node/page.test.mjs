// The page at `/` in a headless Chromium. Screenshots go to RVLLM_SCREENSHOTS, to be looked at.
import assert from "node:assert/strict"
import { after, before, test } from "node:test"
import { setTimeout as sleep } from "node:timers/promises"
import { open } from "./browser.mjs"

const { RVLLM_URL: url, RVLLM_BUSY_URL: busyUrl, RVLLM_KEY: key, RVLLM_CHROMIUM: chromium, RVLLM_SCREENSHOTS: shots } = process.env
const text = selector => page.eval(`document.querySelector(${JSON.stringify(selector)})?.textContent ?? ""`)
const done = "document.querySelector('#send').textContent === 'Send' && !document.querySelector('.busy')"
let page

async function enter(at) {
  page.password = key
  await page.goto(at)
  await page.until("document.querySelector('#model')?.options.length > 0")
}

async function ask(question, settings = {}) {
  for (const [id, value] of Object.entries(settings)) await page.eval(`document.querySelector("#${id}").value = ${JSON.stringify(value)}`)
  await page.eval("document.querySelector('#text').focus()")
  await page.type(question)
  await page.press("Enter")
}

before(async () => { page = await open(chromium) })
after(() => page?.close())

test("the browser asks for the key, and opens the page with it", async () => {
  await page.look({ width: 900, height: 700 })
  for (page.password of [null, "wrong"]) {
    await page.goto(url)
    assert.match(await text("body"), /AuthenticationError/)
  }
  await enter(url)
  assert.deepEqual(await page.eval("[...document.querySelector('#model').options].map(o => o.value)"), ["demo", "demo-alias"])
})

test("a key in the settings counts, and a wrong one is told of", async () => {
  page.password = null
  const put = value => page.eval(`(e => { e.value = ${JSON.stringify(value)}; e.onchange() })(document.querySelector("#key"))`)
  await put("wrong")
  await page.until("document.querySelector('.error')")
  assert.match(await text(".error"), /a key is needed/)
  assert.equal(await page.eval("document.querySelector('#settings').open"), true)
  assert.equal(await page.eval("document.activeElement.id"), "key")
  await put(key)
  await page.until("!document.querySelector('.error')")
})

test("everything that can be operated has a name", async () => {
  const all = await page.operable()
  assert.ok(all.length >= 14, JSON.stringify(all))
  assert.deepEqual(all.filter(e => !e.name), [])
})

test("an answer streams, with its speed, the queue, and each token's probability", async () => {
  await page.eval("document.querySelector('#settings').open = false")
  await ask("Tell me a story about a little cat.", { max_tokens: "60", seed: "7" })
  await page.until("document.querySelectorAll('.assistant .token').length > 2")
  await page.until(done)
  assert.match(await text("#speed"), /^\d+ tokens · [\d.]+ tokens\/s$/)
  await page.until("/^\\d+ running · \\d+ waiting$/.test(document.querySelector('#queue').textContent)")
  await page.point(".assistant .token:nth-child(3)")
  await page.until("!document.querySelector('#tip').hidden")
  const rows = await page.eval("[...document.querySelectorAll('#tip div')].map(e => e.textContent)")
  assert.ok(rows.length >= 5 && rows.every(r => /^".*"\s*\d+\.\d %$/s.test(r)), JSON.stringify(rows))
  if (shots) await page.screenshot(`${shots}/hover.png`)
})

test("what was thought and called is shown plainly", async () => {
  const event = delta => `data: ${JSON.stringify({ choices: [{ index: 0, delta }] })}\n\n`
  const call = (name, args) => event({ tool_calls: [{ index: 0, function: { ...(name ? { name } : {}), arguments: args } }] })
  const body = event({ role: "assistant", content: "" }) + event({ reasoning: "The user wants " }) + event({ reasoning: "the weather." }) + event({ content: "Let me look." }) + call("weather", "{\"city\": ") + call("", "\"Paris\"}") + "data: [DONE]\n\n"
  page.instead = ["chat/completions", "text/event-stream", body]
  await ask("How is the weather in Paris?")
  await page.until("document.querySelector('.call')")
  await page.until(done)
  page.instead = null
  assert.deepEqual([await text(".thought"), await text(".call")], ["The user wants the weather.", "weather: {\"city\": \"Paris\"}"])
})

test("it looks as it should, narrow and wide, light and dark", async () => {
  for (const [width, height] of [[390, 780], [1200, 800]]) for (const dark of [false, true]) {
    await page.look({ width, height, dark })
    assert.equal(await page.eval("document.documentElement.scrollWidth <= innerWidth"), true, `${width} is too narrow`)
    if (!shots) continue
    for (const open of [false, true]) {
      await page.eval(`document.querySelector('#settings').open = ${open}`)
      await page.screenshot(`${shots}/${width}-${dark ? "dark" : "light"}${open ? "-settings" : ""}.png`)
    }
  }
})

test("an answer can be stopped by button and by key", async () => {
  await enter(busyUrl)
  for (const stop of [() => page.point("#send", true), () => page.press("Escape")]) {
    await ask("Go on.")
    await page.until("document.querySelectorAll('.assistant:last-child .token').length > 0 && document.querySelector('#send').textContent === 'Stop'")
    await stop()
    await page.until(done, 3000)
    assert.equal(await text(".error"), "")
  }
})

test("a busy server is told of", async () => {
  await enter(busyUrl)
  const abort = new AbortController()
  const headers = { "content-type": "application/json", authorization: `Bearer ${key}` }
  for (const prompts of [128, 128, 1]) {
    const body = JSON.stringify({ prompt: Array(prompts).fill("a"), max_tokens: 8000 })
    fetch(`${busyUrl}/v1/completions`, { method: "POST", headers, body, signal: abort.signal }).catch(() => {})
  }
  while ((await (await fetch(`${busyUrl}/load`, { headers })).json()).server_load < 257) await sleep(20)
  await ask("Hello?")
  await page.until("document.querySelector('.error')")
  abort.abort()
  assert.match(await text(".error"), /^The server is busy: /)
})

test("nothing came from elsewhere, and nothing threw", () => {
  const elsewhere = page.urls.filter(u => ![url, busyUrl, "data:", "about:"].some(start => u.startsWith(start)))
  assert.deepEqual([elsewhere, page.errors], [[], []])
})
