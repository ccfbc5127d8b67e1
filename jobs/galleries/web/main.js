// The address decides what is shown. Controls write it, and the page follows whatever wrote it: a control, a link, the
// back button.
'use strict'

const byId = id => document.getElementById(id)
const THEMES = { auto: 'Colours: as the system', light: 'Colours: light', dark: 'Colours: dark' }

async function main() {
  const { index, source } = await openRun()
  if (index.version !== 1) throw new Error(`the index has version ${index.version}, this page reads version 1: run dgn gallery build RUN`)
  const table = new Table(source, index)
  const form = byId('filters')
  offerChoices(form, table)
  byId('title').textContent = index.settings.discriminator
  document.title = `${index.settings.discriminator}: dgn gallery`

  let view = null // {rows, items, shown}: what the address selects, and that address
  let grid = null
  let map = null
  let reading = null // while what dgn alike found is on its way
  const thumbnails = new Thumbnails(source)
  const alike = new Alike(source, table)
  const tags = new Tags(index.run_id, () => update(readState(), true))
  const selection = new Selection(byId('selection'), table, followSelection)
  const detail = new Detail(byId('detail'), table, alike, thumbnails, tags, step)
  const chart = new Histogram(byId('histogram'), (from, to) => {
    form.elements.min.value = from
    form.elements.max.value = to
    fromForm(true)
  })

  function follow() {
    const state = readState()
    const filters = addressOf({ ...state, id: '' })
    if (filters !== view?.shown) update(state, false)
    showDetail(state)
  }

  function update(state, keep) {
    if (needsAlike(state) && !alike.isHere) readAlike()
    fill(form.elements.tag, [['', 'any'], ...tags.counts().map(([tag, count]) => [tag, `${tag} (${count})`])])
    byId('by-tag').hidden = !tags.of.size && !state.tag
    for (const [name, value] of Object.entries(state)) {
      const control = form.elements[name]
      if (!control || control === document.activeElement && control.value === value) continue
      if (control.options && ![...control.options].some(option => option.value === value)) {
        control.add(new Option(`${value} (none here)`, value)) // from another run's address
      }
      if (control.type === 'checkbox') control.checked = value === control.value
      else control.value = value
    }
    form.elements.mode.disabled = Boolean(state.pair)
    const others = matching(table, state.pair ? { ...state, mode: '' } : state, isMarked(state))
    view = viewOf(state, inRange(table, state, others))
    showFigure(state, others)
    showView(state, keep)
    const items = state.pair ? view.items() : view.rows
    const isAll = table.length === index.num_rows
    const found = items.length.toLocaleString('en')
    const what = state.pair ? `${found} targets` : `${found} of ${index.num_rows.toLocaleString('en')} pictures`
    const missing = index.num_targets - index.num_rows
    const more = missing ? `, ${missing.toLocaleString('en')} not rendered yet` : ''
    byId('count').textContent = isAll ? what + more : `${what}, still reading`
    const none = index.num_rows ? 'No picture is like this. Clear takes all filters away.' : 'No picture has been made yet.'
    say(items.length || !isAll ? '' : none)
  }

  /** The rows of a state; they are sorted when somebody asks for them in order. */
  function viewOf(state, rows) {
    let sorted = null
    return { rows, items: () => (sorted ??= select(table, state, rows)), shown: addressOf({ ...state, id: '' }) }
  }

  /** Whether a row has the tag, and is selected, if these are asked for. */
  function isMarked({ tag, only }) {
    const isOnly = only === 'selected' && selection.size > 0
    return row => (!tag || tags.has(table.column.target_id[row], tag)) && (!isOnly || selection.isIn[row])
  }

  function showFigure(state, rows) {
    const ends = chart.show(FIGURES[state.of] ?? state.of, figureColumn(table, state), rows, state.min, state.max)
    for (const [i, name] of ['min', 'max'].entries()) form.elements[name].placeholder = ends[i]
  }

  function showView(state, keep) {
    const isMap = COLUMNS.hasMap && state.view === 'map'
    byId('grid').hidden = isMap
    byId('map').hidden = !isMap
    selection.show(state)
    for (const [i, link] of [...byId('views').children].entries()) {
      link.href = addressOf({ ...state, view: ['', 'map'][i], id: '' })
      link.ariaCurrent = isMap === Boolean(i) ? 'page' : null
    }
    if (!isMap) return grid.show(view.items(), state.sort, keep)
    map ??= mapView()
    map.describe(`Map of ${view.rows.length.toLocaleString('en')} pictures. Arrow keys move it, plus and minus zoom, Enter opens the picture in the middle. The grid lists the same pictures.`)
    if (alike.isHere) map.show(view.rows, selection)
    else map.note('Reading the map…')
  }

  function mapView() {
    const open = row => { location.hash = addressOf({ ...readState(), id: table.column.target_id[row] }) }
    const made = new MapView(byId('map'), table, thumbnails, open)
    made.gestures.onLasso = (rows, isMore) => selection.set(rows, isMore)
    byId('theme').addEventListener('click', () => made.draw())
    return made
  }

  function followSelection() {
    const state = readState()
    if (state.only && !selection.size) {
      history.replaceState(null, '', addressOf({ ...state, only: '' }))
      return follow()
    }
    if (state.only) return update(state, false)
    selection.show(state)
    map?.draw()
  }

  /** Shows the view again with what dgn alike found. */
  function readAlike() {
    reading ??= alike.load()
      .then(() => update(readState(), true), error => say(`What dgn alike found cannot be read: ${error.message}`))
      .finally(() => { reading = null })
  }

  function showDetail({ id }) {
    if (!id) return detail.hide()
    const row = table.find(id)
    if (row < 0) {
      if (table.length === index.num_rows) say(`This run's index has no picture ${id}.`)
      return
    }
    const at = place(row)
    detail.show(row, at > 0, at >= 0 && at < view.items().length - 1)
  }

  /** Where in the view a row is. */
  function place(row) {
    return view.items().findIndex(item => item.includes(row))
  }

  /** From an open picture to a neighbour, or, with null, back to the view, where the keyboard continues from it. */
  function step(by) {
    const state = readState()
    const row = table.find(state.id)
    if (by === null) {
      location.hash = addressOf({ ...state, id: '' })
      if (!byId('map').hidden) map.canvas.focus()
      else if (row >= 0 && place(row) >= 0) grid.focus(place(row))
      return
    }
    const item = view.items()[place(row) + by]
    if (!item) return
    const id = table.column.target_id[item.find(one => one !== undefined)]
    history.replaceState(null, '', addressOf({ ...state, id })) // Back returns to the view from any picture
    showDetail(readState())
  }

  function fromForm(isTyping) {
    const given = Object.fromEntries(new FormData(form))
    const address = addressOf({ ...readState(), pair: '', ...given })
    if (isTyping) history.replaceState(null, '', address) // one history entry, not one per letter
    else history.pushState(null, '', address)
    follow()
  }

  form.addEventListener('input', event => {
    if (['search', 'number'].includes(event.target.type)) fromForm(true)
  })
  form.addEventListener('change', event => {
    if (['search', 'number'].includes(event.target.type)) return
    if (event.target.name === 'of') form.elements.min.value = form.elements.max.value = '' // of another figure
    fromForm(false)
  })
  form.addEventListener('submit', event => event.preventDefault())
  form.addEventListener('reset', () => setTimeout(() => { location.hash = addressOf({ ...DEFAULTS, view: readState().view }) }))
  window.addEventListener('hashchange', follow)
  window.addEventListener('popstate', follow)

  if (needsAlike(readState())) readAlike() // beside the rows
  let lastDrawn = -Infinity
  await table.load(() => {
    const isFirst = !grid
    grid ??= new Grid(byId('grid'), table, thumbnails, id => addressOf({ ...readState(), id }))
    const isLast = table.length === index.num_rows
    if (!isLast && performance.now() - lastDrawn < 500) return
    lastDrawn = performance.now()
    update(readState(), true)
    showDetail(readState())
    if (isFirst) return grid.untilLoaded() // the first screen's thumbnails before more rows
  })
  document.documentElement.dataset.ready = 'all' // every row is loaded
}

function offerChoices(form, table) {
  const groups = table.index.parts.flatMap(part => part.groups)
  const count = wanted => groups.filter(wanted).reduce((sum, group) => sum + group.num_rows, 0)
  const modes = [...new Set(groups.map(group => group.mode))].sort().reverse()
  fill(form.elements.layer, [['', 'all'], ...table.layers.map(layer => [layer, `${layer} (${count(one => one.layer === layer)})`])])
  fill(form.elements.mode, [['', 'both'], ...modes.map(mode => [mode, `${mode} (${count(one => one.mode === mode)})`])])
  fill(form.elements.status, ['', ...COLUMNS.statuses].map(name => [name, name.replace('_', ' ') || 'any']))
  fill(form.elements.of, Object.entries(FIGURES).map(([name, title]) => [name, title.toLowerCase()]))
  byId('views').hidden = !COLUMNS.hasMap
  fill(form.elements.sort, Object.entries(orders(table)))
}

function fill(control, choices) {
  control.replaceChildren(...choices.map(([value, title]) => element('option', { value }, title)))
}

function say(message) {
  byId('message').textContent = message
  byId('message').hidden = !message
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme
  byId('theme').textContent = THEMES[theme]
}

function themes() {
  const names = Object.keys(THEMES)
  let kept = null
  try { kept = localStorage.getItem('dgn-theme') } catch { /* some browsers keep nothing for file:// */ }
  setTheme(names.includes(kept) ? kept : 'auto')
  byId('theme').onclick = () => {
    const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length]
    setTheme(next)
    try { localStorage.setItem('dgn-theme', next) } catch { /* as above */ }
  }
}

/** At phone width, as gallery.css has it, the filters fold away: the pictures need the screen. */
function foldFilters() {
  const narrow = matchMedia('(max-width: 640px)')
  const follow = () => { byId('fold').open = !narrow.matches }
  narrow.addEventListener('change', follow)
  follow()
}

themes()
foldFilters()
main().catch(error => {
  say(`The gallery cannot be shown: ${error.message}`)
  throw error
})
