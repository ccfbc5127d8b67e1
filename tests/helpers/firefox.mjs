// Drives Firefox by puppeteer-core over WebDriver BiDi, for firefox.py: reads a call per line, {"name", "given"}, and
// writes an answer per line, {"value"} or {"error"}. When its input ends, it ends Firefox and itself.
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'

const [folder, executablePath] = process.argv.slice(2)
const puppeteer = createRequire(`${folder}/`)('puppeteer-core')
const browser = await puppeteer.launch({ browser: 'firefox', executablePath, timeout: 120_000 })
let page
let complaints

const calls = {
  async open(width, height) {
    page = await browser.newPage()
    page.setDefaultTimeout(60_000)
    await page.setViewport({ width, height })
    complaints = []
    page.on('console', message => { if (message.type() === 'error') complaints.push(message.text()) })
    page.on('pageerror', error => complaints.push(error.message))
  },
  close: () => page.close(),
  complaints: () => complaints,
  async goto(url) { await page.goto(url) },
  evaluate: code => page.evaluate(code),
  wait: (code, timeout) => page.waitForFunction(code, { timeout }).then(handle => handle.jsonValue()),
  press: key => page.keyboard.press(key),
  click: selector => page.click(selector),
  choose: (selector, value) => page.select(selector, value),
  resize: (width, height) => page.setViewport({ width, height }),
  async back() { await page.goBack() },
  async forward() { await page.goForward() },
  async wheel(x, y, deltaY) {
    await page.mouse.move(x, y)
    await page.mouse.wheel({ deltaY })
  },
}

for await (const line of createInterface({ input: process.stdin })) {
  const { name, given } = JSON.parse(line)
  const answer = await Promise.resolve(calls[name](...given)).then(
    value => ({ value: value ?? null }), error => ({ error: String(error) }))
  process.stdout.write(`${JSON.stringify(answer)}\n`)
}
await browser.close()
