// What a hand, a wheel or a keyboard does to the map.
'use strict'

const CLICK_PX = 5 // a pointer that moved less has not dragged
const STEP_PX = 80 // of an arrow key
const STEP_ZOOM = 1.5
const LINE_PX = 3 // between two points of a lasso, at least

class Gestures {
  constructor(map) {
    Object.assign(this, { map, pointers: new Map(), isLasso: false, onLasso: () => {} })
    const { canvas, element } = map
    canvas.addEventListener('pointerdown', event => this.#down(event))
    canvas.addEventListener('pointermove', event => this.#move(event))
    canvas.addEventListener('pointerup', event => this.#up(event))
    canvas.addEventListener('pointercancel', event => this.#forget(event))
    canvas.addEventListener('pointerleave', () => { if (!this.pointers.size) map.choose(undefined) })
    canvas.addEventListener('wheel', event => this.#wheel(event), { passive: false })
    canvas.addEventListener('keydown', event => this.#key(event))
    canvas.addEventListener('blur', () => map.choose(undefined))
    this.button = element.querySelector('#lasso')
    this.button.onclick = () => this.#setLasso(!this.isLasso)
    element.querySelector('#zoom-in').onclick = () => map.zoom(STEP_ZOOM)
    element.querySelector('#zoom-out').onclick = () => map.zoom(1 / STEP_ZOOM)
    element.querySelector('#zoom-reset').onclick = () => map.reset()
  }

  #setLasso(isLasso) {
    this.isLasso = isLasso
    this.button.setAttribute('aria-pressed', isLasso)
    this.map.canvas.className = isLasso ? 'lasso' : ''
  }

  #down(event) {
    if (event.button) return
    this.map.canvas.setPointerCapture(event.pointerId)
    this.pointers.set(event.pointerId, pointOf(event))
    this.start = pointOf(event)
    this.hasMoved = this.pointers.size > 1
    this.map.lasso = this.isLasso && this.pointers.size === 1 ? [this.start] : null // a second finger zooms instead
  }

  #move(event) {
    const { map } = this
    const point = pointOf(event)
    if (!this.pointers.has(event.pointerId)) return this.isLasso || map.choose(map.under(point))
    this.hasMoved ||= distance(point, this.start) > CLICK_PX
    const before = spanOf(this.pointers)
    this.pointers.set(event.pointerId, point)
    if (map.lasso) {
      if (distance(point, map.lasso.at(-1)) > LINE_PX) map.lasso.push(point)
      map.draw(true)
    } else if (this.hasMoved) {
      const now = spanOf(this.pointers)
      map.pan(now.middle[0] - before.middle[0], now.middle[1] - before.middle[1])
      if (before.px && now.px) map.zoom(now.px / before.px, now.middle)
    }
  }

  #up(event) {
    const { map } = this
    if (!this.pointers.has(event.pointerId)) return
    const line = map.lasso
    this.#forget(event)
    if (line && this.hasMoved) {
      this.onLasso(map.inside(line), event.shiftKey)
      this.#setLasso(false)
    } else if (!this.hasMoved) {
      const row = map.under(pointOf(event))
      if (row !== undefined) map.open(row)
    }
  }

  #forget(event) {
    this.pointers.delete(event.pointerId)
    this.map.lasso = null
    this.map.draw(true)
  }

  #wheel(event) {
    event.preventDefault()
    const px = event.deltaY * (event.deltaMode ? 30 : 1) // some browsers count lines
    this.map.zoom(Math.exp(-px * (event.ctrlKey ? 0.01 : 0.002)), pointOf(event)) // Ctrl: two fingers on a touchpad
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    const { map } = this
    const acts = {
      ArrowLeft: () => map.pan(STEP_PX, 0), ArrowRight: () => map.pan(-STEP_PX, 0),
      ArrowUp: () => map.pan(0, STEP_PX), ArrowDown: () => map.pan(0, -STEP_PX),
      '+': () => map.zoom(STEP_ZOOM), '=': () => map.zoom(STEP_ZOOM), '-': () => map.zoom(1 / STEP_ZOOM), 0: () => map.reset(),
      Enter: () => map.rows.length && map.open(map.inMiddle()),
    }
    if (!(event.key in acts)) return
    event.preventDefault()
    acts[event.key]()
    if (event.key !== 'Enter') map.choose(map.inMiddle()) // the picture that Enter opens
  }
}

function pointOf({ offsetX, offsetY }) {
  return [offsetX, offsetY]
}

function distance([x, y], [otherX, otherY]) {
  return Math.hypot(x - otherX, y - otherY)
}

/** The middle of one or two pointers, and how far apart two are. */
function spanOf(pointers) {
  const [a, b = a] = pointers.values()
  return { middle: [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2], px: distance(a, b) }
}
