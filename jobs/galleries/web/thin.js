// Which pictures of a map are shown at which zoom: those that keep a distance, chosen from coarse to fine.
'use strict'

const NEAR_ROWS = 64 // whose thumbnails lie together in a file: chosen together, a screen needs few requests
const FINEST = 22 // half octaves of zoom; 2048 pictures beside each other

class Thinning {
  constructor(x, y) {
    Object.assign(this, { x, y, levels: [] })
    this.order = priorities(x)
  }

  /** Only these rows from now on. */
  show(rows) {
    const isIn = new Uint8Array(this.x.length)
    for (const row of rows) isIn[row] = 1
    this.rows = this.order.filter(row => isIn[row])
    this.levels = []
  }

  /**
   * Rows that are at least 2 ** (-level / 2) apart, in x or in y. Whoever is in a level is also in each finer one, so
   * zooming in adds pictures and takes none away.
   */
  at(level) {
    this.levels[level] ??= this.#thinned(level)
    return this.levels[level]
  }

  #thinned(level) {
    const { x, y } = this
    const distance = 2 ** (-level / 2)
    const side = Math.ceil(1 / distance) + 3 // an empty cell around
    const cells = new Int32Array(side * side).fill(-1) // each holds one row at most
    const kept = []
    const offer = row => {
      const cell = (Math.floor(y[row] / distance) + 1) * side + Math.floor(x[row] / distance) + 1
      for (let up = -side; up <= side; up += side) {
        for (let near = cell + up - 1; near <= cell + up + 1; near++) {
          const other = cells[near]
          if (other >= 0 && Math.abs(x[other] - x[row]) < distance && Math.abs(y[other] - y[row]) < distance) return
        }
      }
      cells[cell] = row
      kept.push(row)
    }
    if (level) this.at(level - 1).forEach(offer)
    this.rows.forEach(offer)
    return kept
  }
}

/** The rows that are on the map, in an order that is random but always the same. */
function priorities(x) {
  const keys = new Float64Array(x.length)
  let n = 0
  for (let row = 0; row < x.length; row++) {
    if (!Number.isNaN(x[row])) keys[n++] = scrambled(Math.floor(row / NEAR_ROWS)) * 2 ** 21 + row
  }
  return Uint32Array.from(keys.subarray(0, n).sort(), key => key % 2 ** 21)
}

/** A number below 2 ** 32 that looks random. Source: the finaliser of MurmurHash3. */
function scrambled(n) {
  let bits = Math.imul(n ^ n >>> 16, 0x85ebca6b)
  bits = Math.imul(bits ^ bits >>> 13, 0xc2b2ae35)
  return (bits ^ bits >>> 16) >>> 0
}
