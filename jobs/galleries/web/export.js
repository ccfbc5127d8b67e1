// Files that the page hands to the person who looks at it.
'use strict'

const FORMULA = /^['=+\-@\t\r]/ // a spreadsheet would run it
const CSV_FIELD = /("(?:[^"]|"")*"|[^",\r\n]*)(,|\r?\n|$)/y

/**
 * CSV (RFC 4180) of rows of values. A text that a spreadsheet would take for a formula gets an apostrophe before it:
 * labels and tags are other people's. Numbers are left as they are.
 */
function toCsv(header, rows) {
  return [header, ...rows].map(row => `${row.map(csvField).join(',')}\r\n`).join('')
}

function csvField(value) {
  if (value == null || Number.isNaN(value)) return ''
  if (typeof value === 'number') return String(value)
  const text = FORMULA.test(value) ? `'${value}` : value
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
}

/** The rows of texts of a CSV that `toCsv` wrote, its header first. Throws an Error for a file that is not one. */
function fromCsv(content) {
  const rows = [[]]
  CSV_FIELD.lastIndex = 0
  while (CSV_FIELD.lastIndex < content.length) {
    const match = CSV_FIELD.exec(content)
    if (!match) throw new Error('it is not CSV')
    const text = match[1].startsWith('"') ? match[1].slice(1, -1).replaceAll('""', '"') : match[1]
    rows.at(-1).push(text.startsWith("'") && FORMULA.test(text.slice(1)) ? text.slice(1) : text)
    if (match[2] !== ',') rows.push([])
  }
  return rows.filter(row => row.length)
}

/** Saves a text as a file, by the browser's own means. */
function download(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }))
  element('a', { href: url, download: name }).click()
  setTimeout(() => URL.revokeObjectURL(url), 60_000) // a browser may ask where to save it first
}
