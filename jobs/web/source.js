// Where the run's bytes come from: a web server or bucket (byte ranges), a server without ranges (whole files), or
// file://, where a page may load nothing but scripts and pictures, so that `dgn gallery build` wrote the same Parquet
// bytes as scripts.
'use strict'

const HTTP_BLOCK_BYTES = 1 << 16 // a detail's few pages come in one or two
const GAP_BYTES = 1 << 15 // thumbnails this near to each other come in one request
const RUN_BYTES = 1 << 19 // at most so many

/** A file read in blocks, each of them once. `loadRun(start, end)` gives the bytes of neighbouring blocks. */
class BlockFile {
  constructor(byteLength, blockBytes, loadRun) {
    Object.assign(this, { byteLength, blockBytes, loadRun, blocks: new Map() })
  }

  /** An ArrayBuffer of bytes [start, end): what hyparquet asks for. */
  async slice(start, end = this.byteLength) {
    const first = Math.floor(start / this.blockBytes)
    const last = Math.floor((end - 1) / this.blockBytes)
    for (let n = first; n <= last; n++) {
      if (this.blocks.has(n)) continue
      let stop = n + 1
      while (stop <= last && !this.blocks.has(stop)) stop++
      this.#begin(n, stop)
      n = stop
    }
    const bytes = new Uint8Array(end - start)
    for (let n = first; n <= last; n++) {
      const block = await this.blocks.get(n)
      const offset = n * this.blockBytes
      const from = Math.max(start - offset, 0)
      bytes.set(block.subarray(from, Math.min(end - offset, block.length)), offset + from - start)
    }
    return bytes.buffer
  }

  #begin(first, stop) {
    const start = first * this.blockBytes
    const run = this.loadRun(start, Math.min(stop * this.blockBytes, this.byteLength))
    for (let n = first; n < stop; n++) {
      const from = n * this.blockBytes - start
      const block = run.then(buffer => new Uint8Array(buffer, from, Math.min(this.blockBytes, buffer.byteLength - from)))
      block.catch(() => this.blocks.delete(n)) // another try may have more luck
      this.blocks.set(n, block)
    }
  }
}

/** Over http(s). */
class WebSource {
  constructor() {
    this.wholes = new Map() // by key: files of a server that does not know ranges
    this.hasRanges = true
  }

  async index() {
    const response = await fetch('../index/current.json', { cache: 'no-cache' })
    if (response.status === 404) throw new Error('this run has no index yet: dgn index RUN makes it')
    if (!response.ok) throw new Error(`the server answers ${response.status} to ../index/current.json`)
    return response.json()
  }

  file(key, byteLength) {
    return new BlockFile(byteLength, HTTP_BLOCK_BYTES, (start, end) => this.range(key, start, end))
  }

  async range(key, start, end) {
    if (this.wholes.has(key)) return this.wholes.get(key).slice(start, end)
    const response = await fetch(`../${encodeKey(key)}`, { headers: { Range: `bytes=${start}-${end - 1}` } })
    if (response.status === 206) return response.arrayBuffer()
    if (response.status !== 200) throw new Error(`the server answers ${response.status} to ${key}`)
    this.hasRanges = false
    const whole = await response.arrayBuffer()
    this.wholes.set(key, whole)
    return whole.slice(start, end)
  }
}

/** From file://, through scripts that call `dgnIndex` and `dgnBlock`. */
class FileSource {
  constructor() {
    this.hasRanges = false
    this.arrived = new Map()
    globalThis.dgnIndex = index => { this.arrived.set('index', index) }
    globalThis.dgnBlock = (key, n, base64) => { this.arrived.set(`${key}/${n}`, base64) }
  }

  async index() {
    const index = await this.#script('data/index.js', 'index')
    if (!index) throw new Error('this folder has no data for file://: dgn gallery build RUN writes it')
    this.blockBytes = index.block_bytes
    return index
  }

  file(key, byteLength) {
    return new BlockFile(byteLength, this.blockBytes, async (start, end) => {
      const bytes = new Uint8Array(end - start)
      const numbers = Array.from({ length: Math.ceil((end - start) / this.blockBytes) }, (_, i) => start / this.blockBytes + i)
      await Promise.all(numbers.map(async n => {
        const base64 = await this.#script(`data/${encodeKey(key)}/${n}.js`, `${key}/${n}`)
        if (base64 === undefined) throw new Error(`data/${key}/${n}.js is missing: dgn gallery build RUN writes it`)
        const text = atob(base64)
        const offset = n * this.blockBytes - start
        for (let i = 0; i < text.length; i++) bytes[offset + i] = text.charCodeAt(i)
      }))
      return bytes.buffer
    })
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

/** A key as part of an address: whatever a file is called, it is a path below the run. */
function encodeKey(key) {
  return key.split('/').map(encodeURIComponent).join('/')
}

/** Thumbnails as addresses for <img>, fetched together where they lie together. */
class Thumbnails {
  constructor(source, most = 2000) {
    Object.assign(this, { source, most, urls: new Map() }) // by row, the least recently used first
  }

  /** Calls `show(row, address)` for each place {row, key, start, bytes}, those that lie nearest to each other first. */
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
        const blob = new Blob([new Uint8Array(buffer, start - run.start, bytes)], { type: 'image/webp' })
        this.#keep(row, URL.createObjectURL(blob))
        show(row, this.urls.get(row))
      }
    }))
  }

  #keep(row, url) {
    if (this.urls.has(row)) URL.revokeObjectURL(this.urls.get(row))
    this.urls.set(row, url)
    while (this.urls.size > this.most) {
      const [oldest, old] = this.urls.entries().next().value
      this.urls.delete(oldest)
      URL.revokeObjectURL(old)
    }
  }
}
