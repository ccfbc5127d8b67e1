// How often each value of a figure occurs among the rows that satisfy all other filters. A drag over it sets the range.
'use strict'

const NUM_BARS = 48
const BAR_PX = 4
const BARS_PX = 34

/** {counts, low, high} of the values that are numbers, in equal bars from the lowest to the highest value. */
function histogram(column, rows) {
  let [low, high] = [Infinity, -Infinity]
  for (const row of rows) {
    if (column[row] < low) low = column[row]
    if (column[row] > high) high = column[row]
  }
  const counts = new Uint32Array(NUM_BARS)
  const perValue = NUM_BARS / (high - low || 1)
  for (const row of rows) {
    const value = column[row]
    if (!Number.isNaN(value)) counts[Math.min(Math.floor((value - low) * perValue), NUM_BARS - 1)]++
  }
  return { counts, low, high }
}

class Histogram {
  /** `onBrush(from, to)` is called with texts for the two inputs while somebody drags. */
  constructor(svg, onBrush) {
    Object.assign(this, { svg, onBrush, low: 0, high: 0 })
    svg.setAttribute('viewBox', `0 0 ${NUM_BARS * BAR_PX} ${BARS_PX}`)
    const [outside, inside] = ['outside', 'inside'].map(name => drawn('path', { class: name }))
    Object.assign(this, { outside, inside })
    svg.append(outside, inside)
    svg.addEventListener('pointerdown', event => {
      svg.setPointerCapture(event.pointerId)
      this.start = this.#share(event)
      this.hasMoved = false
    })
    svg.addEventListener('pointermove', event => {
      if (this.start === undefined) return
      this.hasMoved ||= Math.abs(this.#share(event) - this.start) > 1 / NUM_BARS
      if (this.hasMoved) this.#brush(this.start, this.#share(event))
    })
    svg.addEventListener('pointerup', () => {
      if (!this.hasMoved) onBrush('', '') // a click takes the range away
      this.start = undefined
    })
    svg.addEventListener('pointercancel', () => { this.start = undefined })
  }

  /** Draws the figure `title` of the rows, those between the texts `from` and `to` in colour. */
  show(title, column, rows, from, to) {
    Object.assign(this, histogram(column, rows))
    const most = Math.max(...this.counts, 1)
    const barPx = (this.high - this.low) / NUM_BARS
    const paths = { outside: '', inside: '' }
    this.counts.forEach((count, i) => {
      const height = count && Math.max(count / most * BARS_PX, 1)
      const middle = this.low + (i + 0.5) * barPx
      const isIn = (from === '' || middle >= Number(from)) && (to === '' || middle <= Number(to))
      paths[isIn ? 'inside' : 'outside'] += `M${i * BAR_PX} ${BARS_PX}v${-height.toFixed(2)}h${BAR_PX - 1}v${height.toFixed(2)}z`
    })
    for (const [name, path] of Object.entries(paths)) this[name].setAttribute('d', path)
    const has = this.low <= this.high
    const ends = has ? `from ${number(this.low)} to ${number(this.high)}` : 'no values'
    this.svg.setAttribute('aria-label', `Histogram of ${title.toLowerCase()}, ${ends}. The two fields beside it set the range.`)
    return has ? [number(this.low), number(this.high)] : ['', '']
  }

  #share({ clientX }) {
    const { left, width } = this.svg.getBoundingClientRect()
    return Math.max(0, Math.min((clientX - left) / width, 1))
  }

  /** The range between two shares of the width; an end at the edge is open. */
  #brush(a, b) {
    const text = share => String(Number((this.low + share * (this.high - this.low)).toPrecision(4)))
    const [first, last] = [Math.min(a, b), Math.max(a, b)]
    this.onBrush(first === 0 ? '' : text(first), last === 1 ? '' : text(last))
  }
}
