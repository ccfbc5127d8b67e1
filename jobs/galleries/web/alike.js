// What `dgn alike` found: where each picture lies on the map, which others resemble it, and two figures of its unit.
// Nothing of it is read before it is asked for.
'use strict'

const ALIKE_NUMBERS = ['x', 'y', 'redundancy', 'spread'] // columns of the rows, NaN until they are read, and if missing
const FIGURES = { activation: 'Activation', ...(COLUMNS.hasAlike ? { redundancy: 'Redundancy', spread: 'Spread' } : {}) }

/** Whether a view cannot be shown without it. */
function needsAlike({ view, sort, of }) {
  return COLUMNS.hasAlike && (view === 'map' || [sort, of].some(name => ALIKE_NUMBERS.includes(name)))
}

class Alike {
  constructor(source, table) {
    Object.assign(this, { source, table, isHere: false })
    if (!COLUMNS.hasAlike) return
    for (const name of ALIKE_NUMBERS) table.column[name] = new Float32Array(table.index.num_rows).fill(NaN)
  }

  /** Fills the columns of the table. */
  load() {
    this.loading ??= this.#load().catch(error => {
      this.loading = null // another try may succeed
      throw error
    })
    return this.loading
  }

  async #load() {
    const { table, table_bytes } = await this.source.alike()
    this.file = this.source.file(table, table_bytes)
    this.metadata = hyparquet.parquetMetadata(await this.file.slice(Math.max(0, table_bytes - (1 << 16))))
    const [found, attempts] = await Promise.all([
      this.#columns(['target_id', 'attempt', ...ALIKE_NUMBERS]), this.table.loaded.then(() => this.table.whole('attempt')),
    ])
    this.rows = rowsOf(this.table.column.target_id, found.target_id)
    this.rows.forEach((row, at) => { // a picture that was made again since then has no figures
      if (row >= 0 && attempts[row] !== found.attempt[at]) this.rows[at] = -1
    })
    for (const name of ALIKE_NUMBERS) {
      const column = this.table.column[name]
      this.rows.forEach((row, at) => { if (row >= 0) column[row] = found[name][at] ?? NaN })
    }
    this.isHere = true
  }

  async #columns(names) {
    const length = Number(this.metadata.num_rows)
    const found = Object.fromEntries(names.map(name => [name, new Array(length)]))
    await hyparquet.parquetRead({
      file: this.file, metadata: this.metadata, columns: names,
      onChunk: ({ columnName, columnData, rowStart }) => {
        for (let i = 0; i < columnData.length; i++) found[columnName][rowStart + i] = columnData[i]
      },
    })
    return found
  }

  /** The most similar pictures of a row, [[row, cosine], ...]: two pages of the file. */
  async similar(row) {
    await this.load()
    const at = this.rows.indexOf(row)
    if (at < 0) return []
    const [{ similar, similarity }] = await hyparquet.parquetReadObjects({
      file: this.file, metadata: this.metadata, columns: ['similar', 'similarity'], rowStart: at, rowEnd: at + 1,
      useOffsetIndex: true,
    })
    return Array.from(similar, (other, i) => [this.rows[other], similarity[i]]).filter(([other]) => other >= 0)
  }
}

/** For each of some ids, the row that has it, or -1. Ids in the order of the rows, as they mostly are, need no search. */
function rowsOf(targetIds, ids) {
  const rows = new Int32Array(ids.length).fill(-1)
  let at = 0
  for (let row = 0; row < targetIds.length; row++) {
    if (targetIds[row] === ids[at]) rows[at++] = row
  }
  if (at === ids.length) return rows
  const places = new Map(targetIds.map((id, row) => [id, row]))
  return Int32Array.from(ids, id => places.get(id) ?? -1)
}
