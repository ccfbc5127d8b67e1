// A virtual grid: the page holds about a hundred pictures, however many a view has. Tab reaches one of them; the arrow
// keys, Home, End, Page Up and Page Down reach the others from there.
'use strict'

const MOST_PICTURES = 112 // in the page; larger screens get larger pictures
const SIDE_PX = 124 // of a picture, at least; on a phone three fit in a row
const CAPTION_PX = 57 // always three lines, because all rows have one height
const GAP_PX = 8
const SETTLED_MS = 60 // without scrolling, before thumbnails are fetched

class Grid {
  constructor(element, table, thumbnails, address) {
    Object.assign(this, { element, table, thumbnails, address, items: [], active: 0, rows: new Map() })
    this.space = element.firstElementChild
    this.scroller = new Scroller(element, this.space, () => this.#setAnchor())
    this.anchor = { item: 0, share: 0 } // what is at the top: an item, and the share of its row that is out of sight
    this.wanted = new AbortController()
    this.waiting = [] // for the thumbnails in sight
    element.addEventListener('scroll', () => this.draw(), { passive: true })
    element.addEventListener('keydown', event => this.#onKey(event))
    element.addEventListener('focusin', event => this.#onFocus(event))
    new ResizeObserver(() => this.#layOut()).observe(element)
  }

  /** Shows other items, sorted by `sort`. Scrolls to the top, unless `keep`. */
  show(items, sort, keep) {
    this.items = items
    this.sort = sort
    this.active = Math.min(this.active, Math.max(items.length - 1, 0))
    if (!keep) {
      this.active = 0
      this.anchor = { item: 0, share: 0 }
    }
    this.#layOut()
  }

  #layOut() {
    const { clientWidth: width, clientHeight: height } = this.element
    if (!width || !height) return
    const perItem = this.items[0]?.length ?? 1
    let side = Math.min(SIDE_PX, (width - 4 * GAP_PX) / 3)
    for (;;) {
      this.columns = Math.max(1, Math.floor((width - GAP_PX) / (side * perItem + GAP_PX)))
      this.itemPx = Math.floor((width - GAP_PX) / this.columns) - GAP_PX
      this.sidePx = Math.floor(this.itemPx / perItem)
      this.rowPx = this.sidePx + CAPTION_PX + GAP_PX
      this.rowsInPage = Math.ceil(height / this.rowPx) + 2
      if (this.columns * this.rowsInPage * perItem <= MOST_PICTURES || this.columns === 1) break
      side *= 1.05
    }
    this.numRows = Math.ceil(this.items.length / this.columns)
    this.element.style.setProperty('--item', `${this.itemPx}px`)
    this.element.style.setProperty('--side', `${this.sidePx}px`)
    this.element.setAttribute('aria-rowcount', this.numRows)
    this.element.setAttribute('aria-colcount', this.columns)
    const { item, share } = this.anchor
    this.scroller.resize(this.numRows * this.rowPx + GAP_PX, (Math.floor(item / this.columns) + share) * this.rowPx)
    this.draw(true)
  }

  #setAnchor() {
    const row = this.scroller.top / this.rowPx
    this.anchor = { item: Math.floor(row) * this.columns, share: row % 1 }
  }

  /** Makes the rows that are in sight; `isAnew`: all of them, because the layout or the items are others. */
  draw(isAnew = false) {
    if (!this.columns) return
    const first = Math.max(0, Math.min(Math.floor(this.scroller.top / this.rowPx), this.numRows - this.rowsInPage + 1))
    const stop = Math.min(first + this.rowsInPage, this.numRows)
    const hadFocus = this.element.contains(document.activeElement) && document.activeElement !== this.element
    for (const [n, row] of this.rows) {
      if (isAnew || n < first || n >= stop) {
        row.remove()
        this.rows.delete(n)
      }
    }
    for (let n = first; n < stop; n++) {
      if (!this.rows.has(n)) this.rows.set(n, this.#row(n))
      this.rows.get(n).style.top = `${this.scroller.place(n * this.rowPx + GAP_PX)}px`
    }
    this.#markActive(first, stop)
    if (hadFocus && !this.element.contains(document.activeElement)) this.element.focus({ preventScroll: true })
    this.#fetch()
  }

  #row(n) {
    const row = document.createElement('div')
    row.setAttribute('role', 'row')
    row.setAttribute('aria-rowindex', n + 1)
    const first = n * this.columns
    for (let i = first; i < Math.min(first + this.columns, this.items.length); i++) row.append(this.#cell(i))
    // In order, so that a screen reader reads the rows in order.
    const after = [...this.rows.keys()].filter(other => other > n)
    this.space.insertBefore(row, after.length ? this.rows.get(Math.min(...after)) : null)
    return row
  }

  #cell(i) {
    const shown = this.items[i].filter(row => row !== undefined)
    const link = document.createElement('a')
    link.href = this.address(this.table.column.target_id[shown[0]])
    link.tabIndex = -1
    link.dataset.item = i
    const pictures = document.createElement('span')
    pictures.className = 'pictures'
    for (const row of this.items[i]) pictures.append(this.#picture(row))
    const name = document.createElement('span')
    name.className = 'name'
    name.textContent = nameOf(this.table, shown[0])
    const captions = document.createElement('span')
    captions.className = 'captions'
    for (const row of this.items[i]) captions.append(this.#caption(row))
    link.title = `${name.textContent}\n${shown.map(row => describe(this.table, row)).join('\n')}`
    link.setAttribute('aria-label', [name.textContent, ...shown.map(row => describe(this.table, row))].join(', '))
    link.append(pictures, name, captions)
    const cell = document.createElement('div')
    cell.setAttribute('role', 'gridcell')
    cell.setAttribute('aria-colindex', i % this.columns + 1)
    cell.append(link)
    return cell
  }

  #picture(row) {
    if (row === undefined) return box('not in this run', 'missing')
    const status = this.table.text('status', row)
    if (!this.table.hasPicture(row)) return box('no picture', status)
    const image = new Image(this.sidePx, this.sidePx)
    image.alt = ''
    image.decoding = 'async'
    image.className = status
    image.dataset.row = row
    image.onerror = () => image.replaceWith(box('no thumbnail', 'missing'))
    return image
  }

  /** The figure that the view is sorted by and the mode; what is wrong has a line of its own, where it has room. */
  #caption(row) {
    const caption = document.createElement('span')
    caption.className = 'figures'
    if (row === undefined) return caption
    const status = this.table.text('status', row)
    const mode = this.table.hasModes ? this.table.text('mode', row) : ''
    caption.textContent = `${figureOf(this.table, row, this.sort)} ${mode}\n${status === 'ok' ? '' : status.replace('_', ' ')}`
    return caption
  }

  #fetch() {
    clearTimeout(this.timer)
    this.timer = setTimeout(async () => {
      this.wanted.abort()
      const wanted = this.wanted = new AbortController()
      const images = new Map([...this.space.querySelectorAll('img:not([src])')].map(image => [Number(image.dataset.row), image]))
      const places = [...images.keys()].map(row => this.table.place(row))
      try {
        await this.thumbnails.load(places, (row, url) => { images.get(row).src = url }, wanted.signal)
      } catch (error) {
        for (const image of images.values()) if (!image.hasAttribute('src')) image.onerror()
      }
      if (wanted === this.wanted) for (const go of this.waiting.splice(0)) go()
    }, this.rows.drawn ? SETTLED_MS : 0)
    this.rows.drawn = true
  }

  /** Resolves when the thumbnails in sight are here, or cannot be had; at once where the grid is not shown. */
  untilLoaded() {
    return this.columns && !this.element.hidden ? new Promise(resolve => this.waiting.push(resolve)) : Promise.resolve()
  }

  #markActive(first, stop) {
    const [from, to] = [first * this.columns, stop * this.columns]
    const reachable = this.active >= from && this.active < to ? this.active : Math.ceil(this.scroller.top / this.rowPx) * this.columns
    for (const link of this.space.querySelectorAll('a')) link.tabIndex = Number(link.dataset.item) === reachable ? 0 : -1
  }

  #onFocus({ target }) {
    if (target.dataset?.item) this.active = Number(target.dataset.item)
  }

  #onKey(event) {
    const page = this.columns * Math.max(1, this.rowsInPage - 3)
    const steps = {
      ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns, PageDown: page, PageUp: -page,
      Home: -Infinity, End: Infinity,
    }
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return
    event.preventDefault()
    this.focus(this.active + steps[event.key])
  }

  /** Brings an item into sight and the keyboard to it. */
  focus(item) {
    if (!this.items.length) return
    this.active = Math.max(0, Math.min(item, this.items.length - 1))
    const top = Math.floor(this.active / this.columns) * this.rowPx
    const lowest = top + this.rowPx + GAP_PX - this.element.clientHeight
    if (top < this.scroller.top) this.scroller.scrollTo(top)
    else if (lowest - GAP_PX > this.scroller.top) this.scroller.scrollTo(lowest)
    this.draw()
    this.space.querySelector(`a[data-item="${this.active}"]`)?.focus({ preventScroll: true })
  }
}

/** A place where no picture is, with the reason in words. */
function box(text, status) {
  const element = document.createElement('span')
  element.className = `box ${status}`
  element.textContent = text
  return element
}

/** The label, or where there is none the target's own name. */
function nameOf(table, row) {
  return table.text('label', row) ?? table.pairKey(row).replace(/-s\d+(to\d+)?$/, '')
}

/** What an order by rank, a judge's rank or another figure compares; in all others the activation. */
function figureOf(table, row, sort) {
  const { activation, probability, redundancy, spread, rank } = table.column
  const ranks = sort === 'rank' ? rank : table.column[`judge_rank ${judgeIn(sort)}`]
  const value = (ranks ?? { probability, redundancy, spread }[sort] ?? activation)[row]
  if (isNaN(value)) return '–'
  return ranks ? `rank ${value}` : number(value)
}

/** A row in words, for a pointer that rests on it and for a screen reader. */
function describe(table, row) {
  const { activation, probability, rank, unit } = table.column
  const words = [table.text('layer', row), isNaN(unit[row]) ? '' : `unit ${unit[row]}`, table.text('mode', row)]
  if (table.hasPicture(row)) words.push(`activation ${number(activation[row])}`, `rank ${rank[row]}`)
  if (!isNaN(probability[row])) words.push(`probability ${number(probability[row])}`)
  for (const judge of table.judges) {
    const judged = table.column[`judge_rank ${judge}`][row]
    if (!isNaN(judged)) words.push(`rank ${judged} by ${table.titleOf(judge)}`)
  }
  const status = table.text('status', row)
  if (status !== 'ok') words.push(`${status.replace('_', ' ')}: ${table.text('reason', row) ?? 'no reason given'}`)
  return words.filter(Boolean).join(', ')
}

/** Four digits; more where four would make a 1 of what is less. */
function number(value) {
  if (value == null || Number.isNaN(value)) return ''
  let digits = 4
  while (value < 1 && Number(value.toPrecision(digits)) === 1) digits++
  if (value && Math.abs(value) < 1e-3) return Number(value.toPrecision(digits)).toExponential()
  return value.toLocaleString('en', { maximumSignificantDigits: digits })
}
