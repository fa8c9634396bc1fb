// A headless Chromium, spoken to through its DevTools protocol: what the tests of the page need of it.
import { spawn } from "node:child_process"
import { once } from "node:events"
import { mkdtemp, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { setTimeout as sleep } from "node:timers/promises"

const START_MS = 30_000

// Starts the browser; the page's size is the window's.
export async function open(command) {
  const profile = await mkdtemp(join(tmpdir(), "page-"))
  const flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-port=0", `--user-data-dir=${profile}`]
  const process = spawn(command, [...flags, "about:blank"], { stdio: ["ignore", "ignore", "pipe"] })
  const socket = new WebSocket(await address(process))
  await once(socket, "open")
  const browser = new Browser(socket)
  await browser.attach()
  browser.close = async () => {
    process.kill()
    await once(process, "exit")
    await rm(profile, { recursive: true, force: true, maxRetries: 5 })
  }
  return browser
}

async function address(process) {
  const late = setTimeout(() => process.kill(), START_MS)
  for await (const line of createInterface({ input: process.stderr })) {
    const found = line.match(/ws:\/\/\S+/)
    if (found) {
      clearTimeout(late)
      process.stderr.resume()
      return found[0]
    }
  }
  throw new Error("the browser did not start")
}

class Browser {
  #socket
  #session
  #replies = new Map()
  // URLs that pages asked for, and what they wrote to the console as errors.
  urls = []
  errors = []
  // Answers instead of the server's: [part of a URL, content type, body].
  instead = null
  // What is typed where the browser asks for a password; none cancels.
  password = null
  #asked = new Set()

  constructor(socket) {
    this.#socket = socket
    socket.onmessage = message => this.#hear(JSON.parse(message.data))
  }

  async attach() {
    const { targetInfos } = await this.send("Target.getTargets")
    const { targetId } = targetInfos.find(t => t.type === "page")
    this.#session = (await this.send("Target.attachToTarget", { targetId, flatten: true })).sessionId
    for (const domain of ["Page", "Runtime", "Network", "Accessibility"]) await this.send(`${domain}.enable`)
    await this.send("Fetch.enable", { patterns: [{ urlPattern: "*" }], handleAuthRequests: true })
  }

  send(method, params = {}) {
    const id = this.#replies.size + 1
    const reply = new Promise((resolve, reject) => this.#replies.set(id, { resolve, reject }))
    this.#socket.send(JSON.stringify({ id, method, params, sessionId: this.#session }))
    return reply
  }

  #hear({ id, result, error, method, params }) {
    if (id) return error ? this.#replies.get(id).reject(new Error(error.message)) : this.#replies.get(id).resolve(result)
    if (method === "Runtime.exceptionThrown") this.errors.push(params.exceptionDetails.exception?.description)
    if (method === "Fetch.requestPaused") this.#answer(params)
    if (method === "Fetch.authRequired") this.#enter(params)
  }

  // As a person does: types the password once, and gives up where it is asked for again.
  #enter({ requestId, request }) {
    const again = this.password === null || this.#asked.has(request.url)
    this.#asked.add(request.url)
    const authChallengeResponse = again ? { response: "CancelAuth" } : { response: "ProvideCredentials", username: "", password: this.password }
    this.send("Fetch.continueWithAuth", { requestId, authChallengeResponse }).catch(() => {})
  }

  #answer({ requestId, request }) {
    this.urls.push(request.url)
    const [part, type, body] = this.instead ?? []
    if (!part || !request.url.includes(part)) return this.send("Fetch.continueRequest", { requestId }).catch(() => {})
    const responseHeaders = [{ name: "content-type", value: type }]
    this.send("Fetch.fulfillRequest", { requestId, responseCode: 200, responseHeaders, body: Buffer.from(body).toString("base64") })
  }

  async goto(url) {
    this.#asked.clear()
    await this.send("Page.navigate", { url })
    await this.until("document.readyState === 'complete'")
  }

  async look({ width, height, dark }) {
    await this.send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: width < 500 })
    await this.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }] })
  }

  async eval(expression) {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true })
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text)
    return result.value
  }

  async until(expression, ms = 20_000) {
    for (const end = Date.now() + ms; Date.now() < end; await sleep(20)) if (await this.eval(expression).catch(() => false)) return
    throw new Error(`never true: ${expression}`)
  }

  type(text) {
    return this.send("Input.insertText", { text })
  }

  async press(key) {
    const text = { Enter: "\r" }[key]
    const codes = { Enter: 13, Escape: 27, Tab: 9 }
    const event = { key, code: key, windowsVirtualKeyCode: codes[key], ...(text ? { text } : {}) }
    await this.send("Input.dispatchKeyEvent", { type: "keyDown", ...event })
    await this.send("Input.dispatchKeyEvent", { type: "keyUp", ...event })
  }

  async point(selector, click = false) {
    const { x, y } = await this.eval(`(r => ({ x: r.left + r.width / 2, y: r.top + r.height / 2 }))(document.querySelector(${JSON.stringify(selector)}).getClientRects()[0])`)
    await this.send("Input.dispatchMouseEvent", { type: "mouseMoved", x, y })
    if (!click) return
    for (const type of ["mousePressed", "mouseReleased"]) await this.send("Input.dispatchMouseEvent", { type, x, y, button: "left", clickCount: 1 })
  }

  // Roles and names of what can be operated, as a screen reader tells them.
  async operable() {
    const { nodes } = await this.send("Accessibility.getFullAXTree")
    const roles = ["button", "textbox", "spinbutton", "combobox", "checkbox", "DisclosureTriangle"]
    return nodes.filter(n => !n.ignored && roles.includes(n.role?.value)).map(n => ({ role: n.role.value, name: n.name?.value ?? "" }))
  }

  async screenshot(path) {
    const { data } = await this.send("Page.captureScreenshot", { format: "png" })
    await writeFile(path, Buffer.from(data, "base64"))
  }
}
