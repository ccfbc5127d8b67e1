// Where the run's bytes come from: byte ranges of a web server or bucket; or, for file:// (where a page may load only
// scripts and pictures) and servers without ranges, scripts with the same bytes, written by `dgn gallery build`.
'use strict'

const BLOCK_BYTES = 1 << 16 // as in jobs/galleries/build.py; one or two hold the few pages of a detail
const MOST_BLOCKS = 256 // kept per file
const GAP_BYTES = 1 << 15 // thumbnails this close together come in one request
const RUN_BYTES = 1 << 19 // at most, per request

/** {index, source}: the index as it is now, and where its files are read. */
async function openRun() {
  if (location.protocol !== 'file:') {
    const response = await fetch('../index/current.json', { cache: 'no-cache', headers: { Range: 'bytes=0-' } })
    if (response.status === 404) throw new Error('this run has no index yet: dgn index RUN makes it')
    if (!response.ok) throw new Error(`the server answers ${response.status} to ../index/current.json`)
    if (response.status === 206) return { index: await response.json(), source: new WebSource() }
  }
  const source = new ScriptSource()
  return { index: await source.index(), source }
}

/** A file read in blocks. `loadRun(start, end)` gives the bytes of neighbouring blocks. */
class BlockFile {
  constructor(byteLength, loadRun) {
    Object.assign(this, { byteLength, loadRun, blocks: new Map() }) // least recently used first
  }

  /** An ArrayBuffer of bytes [start, end): what hyparquet asks for. */
  async slice(start, end = this.byteLength) {
    const first = Math.floor(start / BLOCK_BYTES)
    const stop = Math.ceil(end / BLOCK_BYTES)
    const needed = []
    for (let n = first; n < stop; n++) {
      if (!this.blocks.has(n)) {
        let last = n
        while (last + 1 < stop && !this.blocks.has(last + 1)) last++
        this.#begin(n, last + 1)
      }
      needed.push(this.blocks.get(n))
    }
    this.#keep(first, stop)
    const bytes = new Uint8Array(end - start)
    for (const [i, block] of (await Promise.all(needed)).entries()) {
      const offset = (first + i) * BLOCK_BYTES
      const from = Math.max(start - offset, 0)
      bytes.set(block.subarray(from, Math.min(end - offset, block.length)), offset + from - start)
    }
    return bytes.buffer
  }

  #begin(first, stop) {
    const start = first * BLOCK_BYTES
    const run = this.loadRun(start, Math.min(stop * BLOCK_BYTES, this.byteLength))
    for (let n = first; n < stop; n++) {
      const from = n * BLOCK_BYTES - start
      const block = run.then(buffer => new Uint8Array(buffer).slice(from, from + BLOCK_BYTES))
      block.catch(() => this.blocks.delete(n)) // another try may succeed
      this.blocks.set(n, block)
    }
  }

  #keep(first, stop) {
    for (let n = first; n < stop; n++) {
      const block = this.blocks.get(n)
      this.blocks.delete(n)
      this.blocks.set(n, block)
    }
    for (const n of this.blocks.keys()) {
      if (this.blocks.size <= MOST_BLOCKS) break
      this.blocks.delete(n)
    }
  }
}

/** Byte ranges over http(s). */
class WebSource {
  /** alike/current.json */
  async alike() {
    const response = await fetch('../alike/current.json', { cache: 'no-cache' })
    if (!response.ok) throw new Error(`the server answers ${response.status} to ../alike/current.json`)
    return response.json()
  }

  file(key, byteLength) {
    return new BlockFile(byteLength, (start, end) => this.range(key, start, end))
  }

  async range(key, start, end) {
    const response = await fetch(`../${encodeKey(key)}`, { headers: { Range: `bytes=${start}-${end - 1}` } })
    if (response.status !== 206) throw new Error(`the server answers ${response.status} to ${key}`)
    return response.arrayBuffer()
  }
}

/** Scripts that call `dgnIndex`, `dgnAlike` and `dgnBlock`. */
class ScriptSource {
  constructor() {
    this.files = new Map()
    this.arrived = new Map()
    globalThis.dgnIndex = index => { this.arrived.set('index', index) }
    globalThis.dgnAlike = alike => { this.arrived.set('alike', alike) }
    globalThis.dgnBlock = (key, n, base64) => { this.arrived.set(`${key}/${n}`, base64) }
  }

  async index() {
    const index = await this.#script('data/index.js', 'index')
    if (!index) {
      const why = location.protocol === 'file:' ? 'for file://' : 'for a web server without byte ranges'
      throw new Error(`there is no data ${why}: dgn gallery build RUN --file writes them`)
    }
    for (const { id, rows_bytes, thumbs_bytes, judged } of index.parts) {
      this.#open(`index/${id}/rows.parquet`, rows_bytes)
      this.#open(`index/${id}/thumbs.parquet`, thumbs_bytes)
      for (const { name, bytes } of judged) this.#open(`index/${id}/${name}`, bytes)
    }
    return index
  }

  async alike() {
    const alike = await this.#script('data/alike.js', 'alike')
    if (!alike) throw new Error('data/alike.js is missing: dgn gallery build RUN --file writes it')
    this.#open(alike.table, alike.table_bytes)
    return alike
  }

  file(key) {
    return this.files.get(key)
  }

  async range(key, start, end) {
    const file = this.file(key)
    if (!file) throw new Error(`packed into ${key}: a web server with byte ranges shows it (dgn gallery serve RUN)`)
    return file.slice(start, end)
  }

  #open(key, byteLength) {
    this.files.set(key, new BlockFile(byteLength, async (start, end) => {
      const bytes = new Uint8Array(end - start)
      const numbers = Array.from({ length: Math.ceil((end - start) / BLOCK_BYTES) }, (_, i) => start / BLOCK_BYTES + i)
      await Promise.all(numbers.map(async n => {
        const base64 = await this.#script(`data/${encodeKey(key)}/${n}.js`, `${key}/${n}`)
        if (base64 === undefined) throw new Error(`data/${key}/${n}.js is missing: dgn gallery build RUN --file writes it`)
        const text = atob(base64)
        const offset = n * BLOCK_BYTES - start
        for (let i = 0; i < text.length; i++) bytes[offset + i] = text.charCodeAt(i)
      }))
      return bytes.buffer
    }))
  }

  /** What a script brought, undefined where there is none. */
  #script(address, name) {
    return new Promise(resolve => {
      const script = document.createElement('script')
      script.src = address
      script.onload = script.onerror = () => {
        script.remove()
        const content = this.arrived.get(name)
        this.arrived.delete(name)
        resolve(content)
      }
      document.head.append(script)
    })
  }
}

/** A key as part of an address: whatever a file is called, it is a path below the run, or an Error. */
function encodeKey(key) {
  const names = key.split('/')
  if (names.some(name => ['', '.', '..'].includes(name))) throw new Error(`not a file of a run: ${key}`)
  return names.map(encodeURIComponent).join('/')
}

const PACKED = /^(metadata\/\d{6,}\.parquet)#bytes=(\d+)-(\d+)$/ // as in dgn/runs/packed.py

/** Where <img> finds a picture: its file, or its bytes in the file of its shard, for the caller to revoke. */
async function pictureAddress(source, fileName) {
  const packed = PACKED.exec(fileName)
  if (!packed) return `../${encodeKey(fileName)}`
  const [, key, first, last] = packed
  const bytes = await source.range(key, Number(first), Number(last) + 1)
  return URL.createObjectURL(new Blob([bytes], { type: 'image/png' }))
}

/** Thumbnails as addresses for <img>, fetched together where they lie together. */
class Thumbnails {
  constructor(source, most = 2000) {
    Object.assign(this, { source, most, urls: new Map() }) // by row, the least recently used first
  }

  /** Calls `show(row, address)` for each place {row, key, start, bytes}, nearest neighbours first. */
  async load(places, show, signal) {
    const missing = []
    for (const place of places) {
      const url = this.urls.get(place.row)
      if (url) {
        this.urls.delete(place.row)
        this.urls.set(place.row, url)
        show(place.row, url)
      } else {
        missing.push(place)
      }
    }
    missing.sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : a.start - b.start))
    const runs = []
    for (const place of missing) {
      const run = runs.at(-1)
      const end = place.start + place.bytes
      if (run && run.key === place.key && place.start - run.end < GAP_BYTES && end - run.start <= RUN_BYTES) {
        run.places.push(place)
        run.end = end
      } else {
        runs.push({ key: place.key, start: place.start, end, places: [place] })
      }
    }
    await Promise.all(runs.map(async run => {
      if (signal.aborted) return
      const buffer = await this.source.range(run.key, run.start, run.end)
      for (const { row, start, bytes } of run.places) {
        if (!this.urls.has(row)) { // another call may have brought it meanwhile, and a picture be reading that address
          const blob = new Blob([new Uint8Array(buffer, start - run.start, bytes)], { type: 'image/webp' })
          this.#keep(row, URL.createObjectURL(blob))
        }
        show(row, this.urls.get(row))
      }
    }))
  }

  #keep(row, url) {
    this.urls.set(row, url)
    while (this.urls.size > this.most) {
      const [oldest, old] = this.urls.entries().next().value
      this.urls.delete(oldest)
      URL.revokeObjectURL(old)
    }
  }
}
