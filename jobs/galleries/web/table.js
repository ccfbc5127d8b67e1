// All rows of the run, column by column in typed arrays, for filters, sorting and the grid. The rest of a row is fetched
// when it is opened.
'use strict'

const DIGEST_LENGTH = 9 // of '-' and the first digits of a judge's weights' SHA-256

/** Texts of a column and their numbers. */
class Dictionary {
  constructor() {
    this.texts = [null]
    this.codes = new Map([[null, 0], [undefined, 0]])
  }

  code(text) {
    let code = this.codes.get(text)
    if (code === undefined) {
      code = this.texts.push(text) - 1
      this.codes.set(text, code)
    }
    return code
  }
}

/** A judge's name: one network may have judged with weights of several files. */
function judgeOf({ by, weights_sha256 }) {
  return `${by}-${weights_sha256.slice(0, DIGEST_LENGTH - 1)}`
}

class Table {
  constructor(source, index) {
    Object.assign(this, { source, index, length: 0 }) // length: rows loaded
    this.loaded = new Promise(resolve => { this.finish = resolve })
    this.dictionaries = {}
    this.column = {}
    for (const name of COLUMNS.coded) { // few different texts: a number for each, 0 if missing
      this.dictionaries[name] = new Dictionary()
      this.column[name] = new Uint32Array(index.num_rows)
    }
    for (const name of COLUMNS.numbers) this.column[name] = new Float64Array(index.num_rows).fill(NaN) // NaN: missing
    for (const name of COLUMNS.plain) this.column[name] = new Array(index.num_rows)
    this.parts = []
    for (const part of index.parts) {
      const first = this.parts.length ? this.parts.at(-1).first + this.parts.at(-1).num_rows : 0
      this.parts.push({
        ...part, first, rowsFile: source.file(`index/${part.id}/rows.parquet`, part.rows_bytes),
        thumbsKey: `index/${part.id}/thumbs.parquet`,
      })
    }
    this.judges = [...new Set(index.parts.flatMap(part => part.judged.map(judgeOf)))].sort()
    for (const judge of this.judges) {
      this.column[`judge_rank ${judge}`] = new Float64Array(index.num_rows).fill(NaN)
      this.column[`judge_probability ${judge}`] = new Float64Array(index.num_rows).fill(NaN)
    }
    this.hasModes = new Set(index.parts.flatMap(part => part.groups.map(group => group.mode))).size > 1
    const depth = new Map()
    for (const { groups } of index.parts) {
      for (const { layer, first_shard } of groups) depth.set(layer, Math.min(first_shard, depth.get(layer) ?? Infinity))
    }
    this.layers = [...depth.keys()].sort((a, b) => depth.get(a) - depth.get(b))
  }

  /** A judge's name for people: with its weights' digest only where another judge is the same network. */
  titleOf(judge) {
    const network = name => name.slice(0, -DIGEST_LENGTH)
    return this.judges.some(other => other !== judge && network(other) === network(judge)) ? judge : network(judge)
  }

  /** Reads everything, and waits for `onRows` after each row group, and once where there is none. */
  async load(onRows) {
    for (const part of this.parts) {
      const metadata = await this.#metadata(part)
      const names = [...COLUMNS.coded, ...COLUMNS.numbers, ...COLUMNS.plain]
      let rowStart = 0
      for (const group of metadata.row_groups) {
        const rowEnd = rowStart + Number(group.num_rows)
        await Promise.all([
          this.#read(part.rowsFile, metadata, names, part.first, rowStart, rowEnd),
          ...part.judged.map(judged => this.#readJudged(part, judged, rowStart, rowEnd)),
        ])
        this.length = part.first + rowEnd
        rowStart = rowEnd
        await onRows()
      }
    }
    if (!this.length) await onRows()
    this.finish()
  }

  /** Another column of the index, for all rows. */
  async whole(name) {
    const values = new Array(this.length)
    await Promise.all(this.parts.map(async part => hyparquet.parquetRead({
      file: part.rowsFile, metadata: await this.#metadata(part), columns: [name],
      onChunk: ({ columnData, rowStart }) => {
        for (let i = 0; i < columnData.length; i++) values[part.first + rowStart + i] = columnData[i]
      },
    })))
    return values
  }

  async #metadata(part) {
    part.metadata ??= this.#footer(part.rowsFile, part.footer_bytes)
    return part.metadata
  }

  async #footer(file, footerBytes) {
    return hyparquet.parquetMetadata(await file.slice(file.byteLength - footerBytes))
  }

  #read(file, metadata, columns, first, rowStart, rowEnd, rename = name => name) {
    return hyparquet.parquetRead({
      file, metadata, columns, rowStart, rowEnd,
      onChunk: ({ columnName, columnData, rowStart: at }) => this.#fill(rename(columnName), columnData, first + at),
    })
  }

  #fill(name, values, at) {
    const column = this.column[name]
    if (name in this.dictionaries) {
      const dictionary = this.dictionaries[name]
      for (let i = 0; i < values.length; i++) column[at + i] = dictionary.code(values[i])
    } else if (column instanceof Float64Array) {
      for (let i = 0; i < values.length; i++) column[at + i] = values[i] == null ? NaN : Number(values[i])
    } else {
      for (let i = 0; i < values.length; i++) column[at + i] = values[i] ?? null
    }
  }

  /** A judge's columns of a part: a file of their own, in the part's order. */
  async #readJudged(part, judged, rowStart, rowEnd) {
    judged.file ??= this.source.file(`index/${part.id}/${judged.name}`, judged.bytes)
    judged.metadata ??= this.#tail(judged.file)
    const columns = ['judge_rank', 'judge_probability']
    await this.#read(judged.file, await judged.metadata, columns, part.first, rowStart, rowEnd, name => `${name} ${judgeOf(judged)}`)
  }

  async #tail(file) {
    return hyparquet.parquetMetadata(await file.slice(Math.max(0, file.byteLength - (1 << 16))))
  }

  text(name, row) {
    const value = this.column[name][row]
    return name in this.dictionaries ? this.dictionaries[name].texts[value] : value
  }

  /** The part that a row is in. */
  part(row) {
    return this.parts.findLast(part => part.first <= row)
  }

  /** Where a row's thumbnail lies. */
  place(row) {
    return { row, key: this.part(row).thumbsKey, start: this.column.thumb_offset[row], bytes: this.column.thumb_bytes[row] }
  }

  /** Whether a picture was made. */
  hasPicture(row) {
    return this.text('status', row) !== 'nonfinite'
  }

  /** All columns of a row: a few pages of the file. */
  async details(row) {
    const part = this.part(row)
    const at = row - part.first
    const [found] = await hyparquet.parquetReadObjects({
      file: part.rowsFile, metadata: await this.#metadata(part), rowStart: at, rowEnd: at + 1, useOffsetIndex: true,
    })
    return found
  }

  /** The row of an id, -1 where none (that is here yet) has it. */
  find(targetId) {
    const row = this.column.target_id.indexOf(targetId)
    return row < this.length ? row : -1
  }

  /** The same target's id in no mode: what its pictures of both modes share. */
  pairKey(row) {
    return this.column.target_id[row].replace(`-${this.text('mode', row)}-`, '-')
  }

  /** [untrained row, pretrained row] by pairKey, of the rows that are here. */
  pairs() {
    if (this.paired?.length !== this.length) {
      const pairs = new Map()
      for (let row = 0; row < this.length; row++) {
        const key = this.pairKey(row)
        if (!pairs.has(key)) pairs.set(key, [undefined, undefined])
        pairs.get(key)[this.text('mode', row) === 'pretrained' ? 1 : 0] = row
      }
      this.paired = { length: this.length, pairs }
    }
    return this.paired.pairs
  }
}
