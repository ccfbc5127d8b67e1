// The run as a map: every picture of the view is a dot, and as many as have room are thumbnails.
'use strict'

const THUMB_PX = 48
const ROOM_PX = 50 // between the middles of two thumbnails, at least
const DOT_PX = 2
const MARGIN_PX = 32 // around the whole map
const NEAR_PX = 14 // a pointer this far from a dot means it
const MOST_IMAGES = 1000 // kept
const MOST_ZOOM = 100

class MapView {
  /** `open(row)` is called for a picture that somebody chooses. */
  constructor(element, table, thumbnails, open) {
    Object.assign(this, { element, table, thumbnails, open, images: new Map(), rows: [], lasso: null })
    this.canvas = element.querySelector('canvas')
    this.words = element.querySelector('#map-words')
    this.wanted = new AbortController()
    this.gestures = new Gestures(this)
    new ResizeObserver(() => this.#fit()).observe(element)
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.draw())
  }

  /** In words, for who does not see it. */
  describe(words) {
    this.canvas.setAttribute('aria-label', words)
  }

  /** A line below the map, until a picture is named there. */
  note(words) {
    this.noted = words
    this.words.textContent = words
  }

  /** Shows these rows, and which of them are selected. */
  show(rows, selection) {
    const { x, y } = this.table.column
    this.thinning ??= new Thinning(x, y)
    this.selection = selection
    this.rows = rows.filter(row => !Number.isNaN(x[row]))
    this.thinning.show(this.rows)
    const missing = rows.length - this.rows.length
    this.note(missing ? `${missing.toLocaleString('en')} of these are not on the map: without a picture, or newer than it` : '')
    this.draw()
  }

  /** The whole map in the middle. */
  reset() {
    this.isWhole = true
    const side = Math.min(this.width, this.height) - 2 * MARGIN_PX
    this.view = { left: (this.width - side) / 2, top: (this.height - side) / 2, scale: side } // px
    this.least = side
    this.draw()
  }

  pan(right, down) {
    this.isWhole = false
    this.view.left += right
    this.view.top += down
    this.draw()
  }

  /** Zooms in by a factor; what is at a point of the canvas stays there. */
  zoom(factor, [right, down] = [this.width / 2, this.height / 2]) {
    const { left, top, scale } = this.view
    this.isWhole = false
    const by = Math.max(this.least / 2, Math.min(scale * factor, this.least * MOST_ZOOM)) / scale
    this.view = { left: right - (right - left) * by, top: down - (down - top) * by, scale: scale * by }
    this.draw()
  }

  /** Where a row is on the canvas. */
  at(row) {
    const { left, top, scale } = this.view
    return [left + this.table.column.x[row] * scale, top + this.table.column.y[row] * scale]
  }

  /** The row whose thumbnail or dot is at a point, undefined if there is none. */
  under(point) {
    return this.#nearest(this.inSight ?? [], point, THUMB_PX / 2) ?? this.#nearest(this.rows, point, NEAR_PX)
  }

  /** The row nearest to the middle of the canvas. */
  inMiddle() {
    return this.#nearest(this.rows, [this.width / 2, this.height / 2], Infinity)
  }

  #nearest(rows, [right, down], most) {
    let found
    for (const row of rows) {
      const [atX, atY] = this.at(row)
      const away = Math.max(Math.abs(atX - right), Math.abs(atY - down))
      if (away < most) [found, most] = [row, away]
    }
    return found
  }

  choose(row) {
    if (row === this.chosen) return
    this.chosen = row
    this.words.textContent = row === undefined ? this.noted : `${nameOf(this.table, row)}: ${describe(this.table, row)}`
    this.draw(true)
  }

  /** The rows inside a line of points on the canvas. */
  inside(points) {
    const { left, top, scale } = this.view
    const line = points.map(([right, down]) => [(right - left) / scale, (down - top) / scale])
    return rowsInside(line, this.rows, this.table.column.x, this.table.column.y)
  }

  #fit() {
    const { clientWidth: width, clientHeight: height } = this.element
    if (!width || !height || width === this.width && height === this.height) return
    const moved = [(width - this.width) / 2, (height - this.height) / 2]
    Object.assign(this, { width, height, ratio: devicePixelRatio })
    this.canvas.width = Math.round(width * this.ratio)
    this.canvas.height = Math.round(height * this.ratio)
    if (this.isWhole ?? true) this.reset()
    else this.pan(...moved) // what was in the middle stays there
  }

  /** Draws before the next frame, once; `hasSameDots` if only thumbnails, the ring or the lasso changed. */
  draw(hasSameDots = false) {
    if (!hasSameDots) this.dots = null
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null
      if (this.view && this.thinning) this.#paint()
    })
  }

  #paint() {
    const look = getComputedStyle(this.canvas)
    const context = this.canvas.getContext('2d')
    this.dots ??= this.#drawnDots(context, colourOf(look.color), colourOf(look.outlineColor))
    context.setTransform(1, 0, 0, 1, 0, 0)
    context.putImageData(this.dots, 0, 0)
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0)
    const level = Math.floor(2 * Math.log2(this.view.scale / ROOM_PX))
    this.inSight = this.thinning.at(Math.max(0, Math.min(level, FINEST))).filter(row => this.#isInSight(row))
    context.strokeStyle = look.outlineColor
    context.fillStyle = look.backgroundColor
    context.lineWidth = 3
    for (const row of this.inSight) this.#paintThumbnail(context, row)
    if (this.chosen !== undefined) this.#paintRing(context, this.chosen)
    if (this.lasso) this.#paintLasso(context, look.outlineColor)
    this.#fetch()
  }

  #isInSight(row) {
    const [right, down] = this.at(row)
    const half = THUMB_PX / 2
    return right > -half && right < this.width + half && down > -half && down < this.height + half
  }

  /** Dots as pixels, because a hundred thousand rectangles would take longer. */
  #drawnDots(context, plain, accent) {
    const { width, height } = this.canvas
    const { left, top, scale } = this.view
    const { x, y } = this.table.column
    const pixels = context.createImageData(width, height)
    const bits = new Uint32Array(pixels.data.buffer)
    const side = Math.max(1, Math.round(DOT_PX * this.ratio))
    for (const row of this.rows) {
      const right = Math.round((left + x[row] * scale) * this.ratio)
      const down = Math.round((top + y[row] * scale) * this.ratio)
      if (right < 0 || down < 0 || right + side > width || down + side > height) continue
      const colour = this.selection.isIn[row] ? accent : plain
      for (let line = 0; line < side; line++) {
        for (let dot = 0; dot < side; dot++) bits[(down + line) * width + right + dot] = colour
      }
    }
    return pixels
  }

  #paintThumbnail(context, row) {
    const image = this.images.get(row)
    if (!image?.naturalWidth) return
    const [right, down] = this.at(row).map(place => place - THUMB_PX / 2)
    const isIn = this.selection.isIn[row]
    context.fillRect(right, down, THUMB_PX, THUMB_PX)
    context.globalAlpha = this.selection.size && !isIn ? 0.35 : 1
    context.drawImage(image, right, down, THUMB_PX, THUMB_PX)
    context.globalAlpha = 1
    if (isIn) context.strokeRect(right, down, THUMB_PX, THUMB_PX)
  }

  #paintRing(context, row) {
    const [right, down] = this.at(row)
    const half = (this.inSight.includes(row) ? THUMB_PX : 2 * DOT_PX) / 2 + 3
    context.strokeRect(right - half, down - half, 2 * half, 2 * half)
  }

  #paintLasso(context, colour) {
    context.beginPath()
    for (const point of this.lasso) context.lineTo(...point)
    context.closePath()
    context.lineWidth = 2
    context.stroke()
    context.globalAlpha = 0.15
    context.fillStyle = colour
    context.fill()
    context.globalAlpha = 1
  }

  /** Brings what is in sight; `data-state` says when all of it is there. */
  #fetch() {
    const missing = this.inSight.filter(row => !this.images.has(row))
    const isHere = row => this.images.get(row)?.complete
    this.element.dataset.state = this.inSight.every(isHere) ? 'drawn' : 'loading'
    clearTimeout(this.timer)
    if (missing.length) this.timer = setTimeout(() => this.#load(missing), this.images.size ? SETTLED_MS : 0)
  }

  async #load(rows) {
    this.wanted.abort()
    this.wanted = new AbortController()
    const missing = rows.filter(row => !this.images.has(row))
    try {
      await this.thumbnails.load(missing.map(row => this.table.place(row)), (row, url) => {
        const image = new Image()
        image.onload = image.onerror = () => this.draw(true)
        image.src = url
        this.images.set(row, image)
      }, this.wanted.signal)
    } catch (error) {
      this.note(`Some thumbnails cannot be read: ${error.message}`)
    }
    const inSight = new Set(this.inSight)
    for (const row of this.images.keys()) {
      if (this.images.size <= MOST_IMAGES) break
      if (!inSight.has(row)) this.images.delete(row)
    }
  }
}

/** A colour of CSS, `rgb(1, 2, 3)`, as the four bytes of a pixel. */
function colourOf(text) {
  const [red, green, blue] = text.match(/\d+/g).map(Number)
  return (255 << 24 | blue << 16 | green << 8 | red) >>> 0
}

/** Those of some rows that lie inside a closed line: a ray to the right crosses it an odd number of times. */
function rowsInside(line, rows, x, y) {
  const [lines, columns] = [line.map(([, down]) => down), line.map(([right]) => right)]
  const [top, bottom, left, right] = [Math.min(...lines), Math.max(...lines), Math.min(...columns), Math.max(...columns)]
  return rows.filter(row => {
    if (x[row] < left || x[row] > right || y[row] < top || y[row] > bottom) return false
    let isInside = false
    for (let i = 0, j = line.length - 1; i < line.length; j = i++) {
      if (lines[i] > y[row] === lines[j] > y[row]) continue
      const crossing = columns[i] + (y[row] - lines[i]) / (lines[j] - lines[i]) * (columns[j] - columns[i])
      if (x[row] < crossing) isInside = !isInside
    }
    return isInside
  })
}
