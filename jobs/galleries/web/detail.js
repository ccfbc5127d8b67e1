// One picture with everything that its row says, in a dialog.
'use strict'

const SIMILAR_PX = 84
const EXAMPLES_PX = 296 // as in dgn/pictures/example_sheets.py

class Detail {
  /** `navigate(step)` leads to a neighbour, or with null out of here. */
  constructor(dialog, table, alike, thumbnails, tags, navigate) {
    Object.assign(this, { dialog, table, alike, thumbnails, tags, navigate, isLed: false })
    this.title = dialog.querySelector('h2')
    this.words = dialog.querySelector('#detail-words')
    this.body = dialog.querySelector('#detail-body')
    dialog.querySelector('#previous').onclick = () => navigate(-1)
    dialog.querySelector('#next').onclick = () => navigate(1)
    dialog.querySelector('#close').onclick = () => dialog.close()
    dialog.addEventListener('close', () => {
      if (this.isLed) this.isLed = false // the address closed it, and a frame later it may lead here again
      else navigate(null)
    })
    dialog.addEventListener('click', event => { if (event.target === dialog) dialog.close() })
    dialog.addEventListener('keydown', event => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key]
      if (step && !event.altKey) {
        event.preventDefault()
        navigate(step)
      }
    })
  }

  /** Closes it because the address says so. */
  hide() {
    if (!this.dialog.open) return
    this.isLed = true
    this.dialog.close()
  }

  /** Opens a row. `hasBefore`, `hasAfter`: whether the view has neighbours. */
  async show(row, hasBefore, hasAfter) {
    this.row = row
    const { table, dialog } = this
    this.title.textContent = nameOf(table, row)
    this.words.textContent = describe(table, row)
    this.words.className = table.text('status', row)
    dialog.querySelector('#previous').disabled = !hasBefore
    dialog.querySelector('#next').disabled = !hasAfter
    dialog.setAttribute('aria-busy', 'true')
    if (!dialog.open) dialog.showModal()
    let details
    try {
      details = await table.details(row)
    } catch (error) {
      this.body.replaceChildren(element('p', { role: 'alert' }, `This row cannot be read: ${error.message}`))
      return
    }
    if (this.row !== row) return // another was opened meanwhile
    this.body.replaceChildren(...this.#content(row, details))
    this.body.parentElement.scrollTop = 0
    dialog.removeAttribute('aria-busy')
    if (COLUMNS.hasAlike) await this.#showSimilar(row)
  }

  #content(row, details) {
    const picture = element('figure', { className: 'picture' }, ...this.#picture(row, details))
    const judged = this.table.judges.map(judge => [`Rank by ${this.table.titleOf(judge)}`, this.table.column[`judge_rank ${judge}`][row]])
    const settings = Object.entries(this.table.index.settings).map(([name, value]) => [name.replaceAll('_', ' '), value])
    this.scores = facts([...COLUMNS.scores.map(([name, title]) => [title, details[name]]), ...judged])
    this.similar = COLUMNS.hasAlike ? section('Similar pictures', 'Reading…') : ''
    return [
      picture,
      COLUMNS.hasExamples ? this.#examples(row) : '',
      tagEditor(this.tags, details.target_id),
      section('Scores', this.scores),
      this.similar,
      details.activation_curve?.length ? section('Activation over the updates', curve(details.activation_curve, details.updates)) : '',
      details.top5?.length ? section(`The five highest units of ${details.layer}`, topFive(details)) : '',
      details.units?.length > 1 ? section('Units of this target', units(details.units)) : '',
      this.#otherMode(row),
      section('Origin', facts(COLUMNS.origin.map(([name, title]) => [title, details[name]]))),
      element('details', {}, element('summary', {}, 'Settings of the run'), facts(settings)),
    ]
  }

  /** What `dgn alike` found for the picture, after the rest, because it may have to be read first. */
  async #showSimilar(row) {
    const { scores, similar, table } = this
    try {
      const found = await this.alike.similar(row)
      if (this.similar !== similar) return
      scores.append(...facts(['redundancy', 'spread'].map(name => [FIGURES[name], table.column[name][row]])).children)
      similar.lastChild.replaceWith(found.length ? this.#neighbours(found) : 'None was compared with it.')
    } catch (error) {
      similar.lastChild.replaceWith(`They cannot be read: ${error.message}`)
    }
  }

  /** Pictures as links, [[row, cosine], ...]. */
  #neighbours(found) {
    const { table } = this
    const images = new Map()
    const links = found.map(([row, cosine]) => {
      images.set(row, new Image(SIMILAR_PX, SIMILAR_PX))
      images.get(row).alt = ''
      const href = addressOf({ ...readState(), id: table.column.target_id[row] })
      const words = [nameOf(table, row), cosine.toFixed(3)].map(word => element('span', {}, word))
      return element('li', {}, element('a', { href, title: describe(table, row) }, images.get(row), ...words))
    })
    const show = (row, url) => { images.get(row).src = url }
    const noThumbnails = () => images.forEach(image => image.replaceWith(box('no thumbnail', 'missing')))
    this.thumbnails.load([...images.keys()].map(row => table.place(row)), show, new AbortController().signal).catch(noThumbnails)
    return element('ol', { className: 'similar' }, ...links)
  }

  #picture(row, details) {
    if (!details.file_name) return [box(details.reason ?? 'no picture', details.status)]
    const image = new Image(details.width, details.height)
    image.alt = `Picture that excites ${nameOf(this.table, row)}, ${details.mode}`
    image.onerror = () => image.replaceWith(box(`picture missing: ${details.file_name}`, 'missing'))
    const link = element('a', {}, 'The PNG itself')
    pictureAddress(this.table.source, details.file_name).then(address => {
      if (this.row !== row) return URL.revokeObjectURL(address) // another was opened meanwhile
      URL.revokeObjectURL(this.address) // of the picture before; does nothing if that is a file
      this.address = image.src = link.href = address
      if (address.startsWith('blob:')) link.download = `${details.target_id}.png`
    }).catch(error => {
      image.replaceWith(box(error.message, 'missing'))
      link.remove()
    })
    return [image, element('figcaption', {}, link)]
  }

  /** The photographs that excite the same unit most, by `dgn examples`. */
  #examples(row) {
    const subject = this.table.column.target_id[row].split('-').slice(0, -2).join('-')
    const image = new Image(EXAMPLES_PX, EXAMPLES_PX)
    image.alt = `The photographs that excite ${nameOf(this.table, row)} most, the strongest first; a box marks where`
    image.onerror = () => image.replaceWith('None of the photographs excites it.')
    image.src = `../${encodeKey(`examples/sheets/${subject}.webp`)}`
    return section('Photographs that excite it most', image)
  }

  #otherMode(row) {
    const other = this.table.pairs().get(this.table.pairKey(row)).find(one => one !== undefined && one !== row)
    if (other === undefined) return ''
    const link = element('a', { href: addressOf({ ...readState(), id: this.table.column.target_id[other] }) },
      `The same target, ${this.table.text('mode', other)}: activation ${number(this.table.column.activation[other])}`)
    return element('p', {}, link)
  }
}

/** An element with properties and children. Texts stay texts. */
function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties)
  made.append(...children)
  return made
}

function section(title, ...content) {
  return element('section', {}, element('h3', {}, title), ...content)
}

function facts(entries) {
  const list = element('dl', {})
  for (const [title, value] of entries) {
    if (value == null || Number.isNaN(value)) continue
    list.append(element('dt', {}, title), element('dd', {}, text(value)))
  }
  return list
}

function text(value) {
  if (value instanceof Date) return value.toISOString().replace('T', ' ').slice(0, 19) + ' UTC'
  if (typeof value === 'number' && !Number.isInteger(value)) return number(value)
  return typeof value === 'object' ? JSON.stringify(value) : String(value)
}

function topFive({ top5, layer, units }) {
  const most = Math.max(...top5.map(one => one.activation), 1e-9)
  const own = new Set((units ?? []).filter(one => one.layer === layer).map(one => one.unit))
  const rows = top5.map(one => {
    const bar = element('meter', { min: 0, max: most, value: Math.max(one.activation, 0) })
    bar.setAttribute('aria-label', `Activation of unit ${one.unit}`)
    const name = one.label === null || one.label === undefined ? `unit ${one.unit}` : `${one.label} (${one.unit})`
    return element('tr', { className: own.has(one.unit) ? 'own' : '' },
      element('th', { scope: 'row' }, name), element('td', {}, number(one.activation)), element('td', {}, bar))
  })
  return element('table', {}, element('tbody', {}, ...rows))
}

function units(list) {
  return element('ul', {}, ...list.map(one => element('li', {}, `${one.layer}, unit ${one.unit}, weight ${number(one.weight)}`)))
}

const SVG = 'http://www.w3.org/2000/svg'

/** A line from the first to the last update, with its least and highest value written beside it. */
function curve(values, updates) {
  const [width, height, left, bottom] = [360, 140, 60, 20]
  const finite = values.filter(Number.isFinite)
  const least = Math.min(0, ...finite)
  const most = Math.max(0, ...finite)
  const x = i => left + i / Math.max(values.length - 1, 1) * (width - left - 8)
  const y = value => 8 + (most - value) / (most - least || 1) * (height - bottom - 8)
  const points = values.map((value, i) => (Number.isFinite(value) ? `${x(i).toFixed(1)},${y(value).toFixed(1)}` : '')).filter(Boolean)
  const svg = drawn('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', class: 'curve' })
  svg.setAttribute('aria-label', `Activation goes from ${number(values[0])} to ${number(values.at(-1))} over ${updates} updates`)
  for (const value of new Set([least, most])) {
    svg.append(drawn('line', { x1: left, x2: width - 8, y1: y(value), y2: y(value), class: 'rule' }))
    svg.append(drawn('text', { x: left - 6, y: y(value) + 4, 'text-anchor': 'end' }, number(value)))
  }
  svg.append(drawn('text', { x: left, y: height - 4 }, 'update 1'))
  svg.append(drawn('text', { x: width - 8, y: height - 4, 'text-anchor': 'end' }, String(updates)))
  svg.append(drawn('polyline', { points: points.join(' '), class: 'line' }))
  return svg
}

function drawn(name, attributes, content = '') {
  const made = document.createElementNS(SVG, name)
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
  made.textContent = content
  return made
}
