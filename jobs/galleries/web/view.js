// Filters and order, as the address gives them, and the rows that they select.
'use strict'

const DEFAULTS = {
  q: '', layer: '', mode: '', status: '', tag: '', of: 'activation', min: '', max: '', sort: 'layer', pair: '', only: '',
  view: '', id: '',
}

/** The page's state from its address, `#layer=fc8&sort=rank&id=...`. */
function readState() {
  const given = new URLSearchParams(location.hash.slice(1))
  return Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, given.get(name) ?? value]))
}

/** The address of a state. What is as always is left out. */
function addressOf(state) {
  const given = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name])
  return `#${new URLSearchParams(given)}`
}

/** Orders to choose from: {value: text}. */
function orders(table) {
  const judged = table.judges.map(judge => [`judge ${judge}`, `rank by ${table.titleOf(judge)}`])
  const alike = COLUMNS.hasAlike ? [['redundancy', 'redundancy'], ['spread', 'spread']] : []
  return Object.fromEntries([
    ['layer', 'layer and mode'], ['activation', 'activation'], ['probability', 'probability'], ['rank', 'rank'],
    ['unit', 'layer, unit'], ['label', 'label'], ...alike, ...judged,
  ])
}

/** Items to show, in order, of some rows. An item is an array of rows: one, or those of both modes side by side. */
function select(table, state, rows) {
  const sorted = rows.slice().sort(comparison(table, state.sort))
  return state.pair ? inPairs(table, sorted) : Array.from(sorted, row => [row])
}

/** The rows that all filters but the range leave over. `isMarked(row)` speaks for tags and the selection. */
function matching(table, state, isMarked) {
  const { layer, mode, status } = table.column
  const wanted = name => (state[name] ? table.dictionaries[name].codes.get(state[name]) ?? -1 : null)
  const [ofLayer, ofMode, ofStatus] = ['layer', 'mode', 'status'].map(wanted)
  const isFound = searching(table, state.q)
  const rows = new Uint32Array(table.length)
  let n = 0
  for (let row = 0; row < table.length; row++) {
    if (ofLayer !== null && layer[row] !== ofLayer) continue
    if (ofMode !== null && mode[row] !== ofMode) continue
    if (ofStatus !== null && status[row] !== ofStatus) continue
    if (isFound(row) && isMarked(row)) rows[n++] = row
  }
  return rows.subarray(0, n)
}

/** Those of some rows whose figure is in the range. */
function inRange(table, state, rows) {
  if (state.min === '' && state.max === '') return rows
  const figure = figureColumn(table, state)
  const least = state.min === '' ? -Infinity : Number(state.min)
  const most = state.max === '' ? Infinity : Number(state.max)
  return rows.filter(row => figure[row] >= least && figure[row] <= most)
}

/** The column that the range is about; an empty one for a figure that this run does not have. */
function figureColumn(table, { of }) {
  return Object.hasOwn(FIGURES, of) ? table.column[of] : []
}

/** Every word has to be in the label, the layer or the id, whatever its case. */
function searching(table, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean)
  if (!words.length) return () => true
  const labels = table.dictionaries.label.texts.map(label => (label ?? '').toLowerCase())
  return row => words.every(word =>
    labels[table.column.label[row]].includes(word) || table.column.target_id[row].toLowerCase().includes(word))
}

/** Compares rows; equal ones, and those without a value, by the index's own order. */
function comparison(table, sort) {
  const { activation, unit, seed } = table.column
  const depths = table.dictionaries.layer.texts.map(layer => table.layers.indexOf(layer))
  const modes = table.dictionaries.mode.texts.map(mode => ['untrained', 'pretrained'].indexOf(mode))
  const depth = (a, b) => depths[table.column.layer[a]] - depths[table.column.layer[b]]
  const mode = (a, b) => modes[table.column.mode[a]] - modes[table.column.mode[b]]
  const byLayer = (a, b) => depth(a, b) || mode(a, b) || rising(activation[b], activation[a], -1) || a - b
  const compare = {
    layer: () => 0,
    activation: highestFirst(activation),
    unit: (a, b) => depth(a, b) || rising(unit[a], unit[b]) || rising(seed[a], seed[b]) || mode(a, b),
    label: labelOrder(table),
    rank: (a, b) => rising(table.column.rank[a], table.column.rank[b]),
    ...Object.fromEntries(['probability', 'redundancy', 'spread'].map(name => [name, highestFirst(table.column[name] ?? [])])),
  }[sort] ?? judgeOrder(table, sort)
  return (a, b) => compare(a, b) || byLayer(a, b)
}

function highestFirst(column) {
  return (a, b) => rising(column[b], column[a], -1)
}

/** The judge whose order it is. */
function judgeIn(sort) {
  return sort.replace(/^judge /, '')
}

function judgeOrder(table, sort) {
  const judge = judgeIn(sort)
  const rank = table.column[`judge_rank ${judge}`]
  const probability = table.column[`judge_probability ${judge}`]
  return rank ? (a, b) => rising(rank[a], rank[b]) || rising(probability[b], probability[a], -1) : () => 0
}

function labelOrder(table) {
  const { texts } = table.dictionaries.label
  const order = texts.map((_, code) => code).sort((a, b) =>
    (texts[a] === null) - (texts[b] === null) || (texts[a] ?? '').localeCompare(texts[b] ?? ''))
  const place = new Uint32Array(texts.length)
  order.forEach((code, i) => { place[code] = i })
  return (a, b) => place[table.column.label[a]] - place[table.column.label[b]]
}

/** a - b; missing values last, also where the two were exchanged for a falling order (sign -1). */
function rising(a, b, sign = 1) {
  const missing = isNaN(a) - isNaN(b)
  return missing ? sign * missing : isNaN(a) ? 0 : a - b
}

/** Rows with their other mode's beside them, each pair where its first row stands. A missing mode is undefined. */
function inPairs(table, rows) {
  const pairs = table.pairs()
  return [...new Set(Array.from(rows, row => pairs.get(table.pairKey(row))))]
}
