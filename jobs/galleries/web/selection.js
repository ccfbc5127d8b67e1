// The pictures that somebody drew a line around, kept until others are selected or the page is left.
'use strict'

const CSV_COLUMNS = ['target_id', 'layer', 'unit', 'label', 'mode', 'status', 'activation']

class Selection {
  /** `bar`: the line that says how many are selected; `onChange` is called after each change. */
  constructor(bar, table, onChange) {
    Object.assign(this, { bar, table, onChange, isIn: new Uint8Array(table.index.num_rows), size: 0 })
    bar.querySelector('#export-ids').onclick = () => {
      download('selected-ids.txt', 'text/plain', this.rows().map(row => `${table.column.target_id[row]}\n`).join(''))
    }
    bar.querySelector('#export-csv').onclick = () => download('selected.csv', 'text/csv', this.csv())
    bar.querySelector('#select-none').onclick = () => this.set([])
  }

  /** Selects other rows, or with `isMore` these as well. */
  set(rows, isMore = false) {
    if (!isMore) this.isIn.fill(0)
    for (const row of rows) this.isIn[row] = 1
    this.size = this.isIn.reduce((sum, one) => sum + one, 0)
    this.onChange()
  }

  rows() {
    return Array.from(this.isIn.keys()).filter(row => this.isIn[row])
  }

  csv() {
    const value = (name, row) => this.table.text(name, row)
    return toCsv(CSV_COLUMNS, this.rows().map(row => CSV_COLUMNS.map(name => value(name, row))))
  }

  /** Says how many are selected, with a link to the view that shows only them, or back to all. */
  show(state) {
    const isOnly = state.only === 'selected'
    this.bar.hidden = !this.size
    this.bar.querySelector('output').textContent = `${this.size.toLocaleString('en')} selected`
    const link = this.bar.querySelector('a')
    link.textContent = isOnly ? 'Show all' : 'Show in grid'
    link.href = addressOf(isOnly ? { ...state, only: '' } : { ...state, only: 'selected', view: '', id: '' })
  }
}
