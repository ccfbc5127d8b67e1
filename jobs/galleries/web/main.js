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

  let items = []
  let shown = null // the filters behind `items`
  let grid = null
  const detail = new Detail(byId('detail'), table, step)

  function follow() {
    const state = readState()
    const filters = addressOf({ ...state, id: '' })
    if (filters !== shown) update(state, false)
    showDetail(state)
  }

  function update(state, keep) {
    shown = addressOf({ ...state, id: '' })
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
    items = select(table, state.pair ? { ...state, mode: '' } : state)
    grid.show(items, state.sort, keep)
    const isAll = table.length === index.num_rows
    const found = items.length.toLocaleString('en')
    const what = state.pair ? `${found} targets` : `${found} of ${index.num_rows.toLocaleString('en')} pictures`
    const missing = index.num_targets - index.num_rows
    const more = missing ? `, ${missing.toLocaleString('en')} not rendered yet` : ''
    byId('count').textContent = isAll ? what + more : `${what}, still reading`
    const none = index.num_rows ? 'No picture is like this. Clear takes all filters away.' : 'No picture has been made yet.'
    say(items.length || !isAll ? '' : none)
  }

  function showDetail({ id }) {
    if (!id) return detail.hide()
    const row = table.find(id)
    if (row < 0) {
      if (table.length === index.num_rows) say(`This run's index has no picture ${id}.`)
      return
    }
    const at = place(row)
    detail.show(row, at > 0, at >= 0 && at < items.length - 1)
  }

  /** Where in the view a row is. */
  function place(row) {
    return items.findIndex(item => item.includes(row))
  }

  /** From an open picture to a neighbour, or, with null, back to the grid, where the keyboard continues from it. */
  function step(by) {
    const state = readState()
    const row = table.find(state.id)
    if (by === null) {
      location.hash = addressOf({ ...state, id: '' })
      if (row >= 0 && place(row) >= 0) grid.focus(place(row))
      return
    }
    const item = items[place(row) + by]
    if (!item) return
    const id = table.column.target_id[item.find(one => one !== undefined)]
    history.replaceState(null, '', addressOf({ ...state, id })) // Back returns to the grid from any picture
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
    if (!['search', 'number'].includes(event.target.type)) fromForm(false)
  })
  form.addEventListener('submit', event => event.preventDefault())
  form.addEventListener('reset', () => setTimeout(() => { location.hash = '' }))
  window.addEventListener('hashchange', follow)
  window.addEventListener('popstate', follow)

  let lastDrawn = -Infinity
  await table.load(() => {
    grid ??= new Grid(byId('grid'), table, new Thumbnails(source), id => addressOf({ ...readState(), id }))
    const isLast = table.length === index.num_rows
    if (!isLast && performance.now() - lastDrawn < 500) return
    lastDrawn = performance.now()
    update(readState(), true)
    showDetail(readState())
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
