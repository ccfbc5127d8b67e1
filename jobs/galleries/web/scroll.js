// Scrolls a view of any height. Chromium 150 cuts an element at 33,554,428 px, which are 1.5 million pictures in rows of
// nine; Firefox 153 gives an element of more than 17,895,697 px no height at all, and from 6 million on it misplaces
// what is in it by up to two pixels. A higher view therefore gets an element of `MOST_PX`, and its position is kept
// apart from the scroll bar's. A step (wheel, touch, keys) moves both by its own pixels, so that no row is skipped. A
// jump (the bar is dragged) leads to the part of the view that the bar's position stands for. When the scrolling rests,
// the bar is set to the position that stands for the view's, and the rows with it: nothing in sight moves.
'use strict'

const RESTS_MS = 1000 // after the last step, where no 'scrollend' comes: in Firefox after some wheels

class Scroller {
  static MOST_PX = 4e6 // tests set it lower, before a view is laid out

  /** `onMove` is called when the view was scrolled, before the element's other listeners hear of it. */
  constructor(element, space, onMove) {
    Object.assign(this, { element, space, onMove, top: 0, bar: 0, viewPx: 0, barPx: 0 })
    element.addEventListener('scroll', () => this.#follow(), { passive: true })
    element.addEventListener('scrollend', () => this.#rest(), { passive: true })
  }

  /** The view is this high from now on, and shown from `top`. */
  resize(heightPx, top) {
    const barHeightPx = Math.min(heightPx, Scroller.MOST_PX)
    this.viewPx = Math.max(0, heightPx - this.element.clientHeight) // how far it can be scrolled
    this.barPx = Math.max(0, barHeightPx - this.element.clientHeight)
    this.space.style.height = `${barHeightPx}px`
    this.#setTop(top)
  }

  /** Shows the view from `top`, or from as near to it as there is a screenful. */
  scrollTo(top) {
    this.#setTop(top)
    this.onMove()
  }

  /** Where in the element a pixel of the view lies at the moment. */
  place(px) {
    return px - this.top + this.bar
  }

  #follow() {
    const { clientHeight } = this.element
    const bar = this.#bar()
    const moved = bar - this.bar
    if (!moved) return // by #setBar
    this.bar = bar
    clearTimeout(this.timer)
    this.timer = setTimeout(() => this.#rest(), RESTS_MS)
    // The bar's thumb moves by pixels too, and each stands for this many of the element's; half for fine screens.
    const dragPx = this.barPx / clientHeight / 2
    if (Math.abs(moved) <= Math.max(dragPx, clientHeight)) this.top = within(this.top + moved, this.viewPx)
    else this.top = bar + Math.round(standsFor(bar, this.barPx, this.viewPx) - bar)
    this.onMove()
    const isNearEnd = bar < clientHeight || bar > this.barPx - clientHeight
    if (isNearEnd) this.#setBar() // or steps without a pause would come to the bar's end before the view's
  }

  #rest() {
    clearTimeout(this.timer)
    if (this.bar === this.#bar()) this.#setBar() // or it has moved on, and its event, yet to come, must find it there
  }

  #setTop(top) {
    this.top = within(Math.round(top), this.viewPx)
    this.#setBar()
  }

  #setBar() {
    const wanted = Math.round(standsFor(this.top, this.viewPx, this.barPx))
    if (Math.abs(wanted - this.#bar()) >= 1) this.element.scrollTop = wanted
    this.bar = this.#bar()
  }

  #bar() {
    return within(this.element.scrollTop, this.barPx) // some browsers go beyond an end, and bounce back
  }
}

function within(px, most) {
  return Math.max(0, Math.min(px, most))
}

/**
 * A position in a range of `from` pixels as one in a range of `to`: in proportion, except that near either end, a
 * hundredth of the shorter range, it keeps its distance from that end. There, bar and view move together.
 */
function standsFor(position, from, to) {
  const edge = Math.min(from, to) / 100
  if (position <= edge) return position
  if (position >= from - edge) return to - (from - position)
  return edge + (position - edge) * (to - 2 * edge) / (from - 2 * edge)
}
