// Drives Firefox by puppeteer-core over WebDriver BiDi, for firefox.py: reads a call per line, {"name", "given"}, and
// writes an answer per line, {"value"} or {"error"}. When its input ends, it ends Firefox and itself.
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'

const [folder, executablePath] = process.argv.slice(2)
const puppeteer = createRequire(`${folder}/`)('puppeteer-core')
const browser = await puppeteer.launch({ browser: 'firefox', executablePath, timeout: 120_000 })
let page
let complaints

/** Firefox before 144 has the size, but not the orientation that puppeteer sets at the same time. */
async function resize(width, height) {
  await page.setViewport({ width, height }).catch(error => {
    if (!error.message.includes('setScreenOrientationOverride')) throw error
  })
  await until(`innerWidth === ${width} && innerHeight === ${height}`, 60_000)
}

/** What an expression is in the page, once it is something. Puppeteer's own wait needs eval, which the page forbids. */
function until(code, timeout) {
  const looks = `new Promise(done => {
    const look = () => { const found = ${code}; found ? done(found) : requestAnimationFrame(look) }
    look()
  })`
  let timer
  const late = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new Error(`not within ${timeout} ms: ${code}`)), timeout)
  })
  return Promise.race([page.evaluate(looks), late]).finally(() => clearTimeout(timer))
}

const calls = {
  async open(width, height) {
    page = await browser.newPage()
    page.setDefaultTimeout(60_000)
    await resize(width, height)
    complaints = []
    page.on('console', message => { if (message.type() === 'error') complaints.push(message.text()) })
    page.on('pageerror', error => complaints.push(error.message))
  },
  close: () => page.close(),
  complaints: () => complaints,
  async goto(url) { await page.goto(url) },
  evaluate: code => page.evaluate(code),
  wait: until,
  press: key => page.keyboard.press(key),
  click: selector => page.click(selector),
  write: (selector, text) => page.type(selector, text),
  async drag(points) {
    await page.mouse.move(...points[0])
    await page.mouse.down()
    for (const point of points) await page.mouse.move(...point, { steps: 3 })
    await page.mouse.up()
  },
  choose: (selector, value) => page.select(selector, value),
  resize,
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
