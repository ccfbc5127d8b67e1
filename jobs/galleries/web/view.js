// Filters and order, as the address gives them, and the rows that they select.
'use strict'

const DEFAULTS = { q: '', layer: '', mode: '', status: '', min: '', max: '', sort: 'layer', pair: '', id: '' }

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
  return Object.fromEntries([
    ['layer', 'layer and mode'], ['activation', 'activation'], ['probability', 'probability'], ['rank', 'rank'],
    ['unit', 'layer, unit'], ['label', 'label'], ...judged,
  ])
}

/** Items to show, in order. An item is an array of rows: one, or those of both modes side by side. */
function select(table, state) {
  const rows = matching(table, state)
  rows.sort(comparison(table, state.sort))
  return state.pair ? inPairs(table, rows) : Array.from(rows, row => [row])
}

function matching(table, state) {
  const { layer, mode, status, activation } = table.column
  const wanted = name => (state[name] ? table.dictionaries[name].codes.get(state[name]) ?? -1 : null)
  const [ofLayer, ofMode, ofStatus] = ['layer', 'mode', 'status'].map(wanted)
  const least = state.min === '' ? -Infinity : Number(state.min)
  const most = state.max === '' ? Infinity : Number(state.max)
  const hasRange = state.min !== '' || state.max !== ''
  const isFound = searching(table, state.q)
  const rows = new Uint32Array(table.length)
  let n = 0
  for (let row = 0; row < table.length; row++) {
    if (ofLayer !== null && layer[row] !== ofLayer) continue
    if (ofMode !== null && mode[row] !== ofMode) continue
    if (ofStatus !== null && status[row] !== ofStatus) continue
    if (hasRange && !(activation[row] >= least && activation[row] <= most)) continue
    if (isFound(row)) rows[n++] = row
  }
  return rows.subarray(0, n)
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
    activation: (a, b) => rising(activation[b], activation[a], -1),
    unit: (a, b) => depth(a, b) || rising(unit[a], unit[b]) || rising(seed[a], seed[b]) || mode(a, b),
    label: labelOrder(table),
    rank: (a, b) => rising(table.column.rank[a], table.column.rank[b]),
    probability: (a, b) => rising(table.column.probability[b], table.column.probability[a], -1),
  }[sort] ?? judgeOrder(table, sort)
  return (a, b) => compare(a, b) || byLayer(a, b)
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
