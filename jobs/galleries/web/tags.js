// Words that a person gives to pictures. This browser keeps them, for this run; they leave it as a file.
'use strict'

const TAG_COLUMNS = ['target_id', 'tag']
const MOST_LETTERS = 60 // of a tag

class Tags {
  /** `onChange` is called after each change. */
  constructor(runId, onChange) {
    Object.assign(this, { key: `dgn-tags-${runId}`, onChange, problem: '', of: new Map() }) // of: target_id: Set of tags
    try {
      for (const [id, tags] of Object.entries(JSON.parse(localStorage.getItem(this.key) ?? '{}'))) this.of.set(id, new Set(tags))
    } catch { /* what is blocked or not readable is said when something is to be kept */ }
  }

  /** The tags of a picture, in order. */
  at(id) {
    return [...this.of.get(id) ?? []].sort()
  }

  /** How many pictures have each tag: [[tag, count], ...] in order. */
  counts() {
    const counts = new Map()
    for (const tags of this.of.values()) for (const tag of tags) counts.set(tag, (counts.get(tag) ?? 0) + 1)
    return [...counts].sort(([a], [b]) => a.localeCompare(b))
  }

  has(id, tag) {
    return this.of.get(id)?.has(tag) ?? false
  }

  add(id, tag) {
    this.#put(id, tag)
    this.#keep()
  }

  remove(id, tag) {
    this.of.get(id)?.delete(tag)
    if (!this.of.get(id)?.size) this.of.delete(id)
    this.#keep()
  }

  csv() {
    return toCsv(TAG_COLUMNS, [...this.of.keys()].sort().flatMap(id => this.at(id).map(tag => [id, tag])))
  }

  /** Adds the tags of a file that `csv` made. Throws an Error for another. */
  read(content) {
    const [header, ...rows] = fromCsv(content)
    if (header?.join() !== TAG_COLUMNS.join()) throw new Error(`expected the columns ${TAG_COLUMNS.join(', ')}`)
    for (const [id, tag] of rows) this.#put(id, tag ?? '')
    this.#keep()
  }

  #put(id, tag) {
    const plain = tag.trim().replace(/\s+/g, ' ')
    if (plain) this.of.set(id, (this.of.get(id) ?? new Set()).add(plain))
  }

  #keep() {
    try {
      localStorage.setItem(this.key, JSON.stringify(Object.fromEntries([...this.of].map(([id, tags]) => [id, [...tags]]))))
      this.problem = ''
    } catch {
      this.problem = 'This browser keeps no tags: its storage is blocked or full. Export them before you close the page.'
    }
    this.onChange()
  }
}

/** A picture's tags, each with a button that takes it away; a field for another; all pictures' tags as a file. */
function tagEditor(tags, id) {
  const list = element('ul', { className: 'tags' })
  const input = element('input', { type: 'text', maxLength: MOST_LETTERS, placeholder: 'add a tag' })
  input.setAttribute('aria-label', 'Add a tag')
  input.setAttribute('list', 'known-tags')
  const problem = element('p', { role: 'alert' })
  const known = element('datalist', { id: 'known-tags' })
  const draw = () => {
    list.replaceChildren(...tags.at(id).map(tag => element('li', {}, tag, removeButton(tag))))
    list.hidden = !list.children.length
    problem.textContent = tags.problem
    known.replaceChildren(...tags.counts().map(([tag]) => element('option', { value: tag })))
  }
  const removeButton = tag => {
    const button = element('button', { type: 'button', onclick: () => { tags.remove(id, tag); draw(); input.focus() } }, '×')
    button.setAttribute('aria-label', `Remove the tag ${tag}`)
    return button
  }
  const form = element('form', {}, input, known, element('button', {}, 'Add'), ...tagFileButtons(tags, draw))
  form.onsubmit = event => {
    event.preventDefault()
    tags.add(id, input.value)
    input.value = ''
    draw()
  }
  form.onkeydown = event => { if (event.key.startsWith('Arrow')) event.stopPropagation() } // they move in the text here
  draw()
  return section('Tags', list, form, problem)
}

function tagFileButtons(tags, onRead) {
  const input = element('input', { type: 'file', accept: '.csv,text/csv', hidden: true })
  input.onchange = async () => {
    try {
      tags.read(await input.files[0].text())
    } catch (error) {
      tags.problem = `${input.files[0].name} cannot be read as tags: ${error.message}`
    }
    input.value = ''
    onRead()
  }
  const onExport = () => download('tags.csv', 'text/csv', tags.csv())
  return [
    input, element('button', { type: 'button', onclick: onExport }, 'Export all tags'),
    element('button', { type: 'button', onclick: () => input.click() }, 'Import tags'),
  ]
}
