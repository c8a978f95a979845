/* Below each drawn series a button that opens it as a chart to zoom and to move. Reads data-* of the page alone. */
(() => {
  "use strict"
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim() || "gray"
  const decode = ({values, low, high}) => {
    const bytes = Uint8Array.from(atob(values), one => one.charCodeAt(0)), raw = new DataView(bytes.buffer)
    const rows = [...Array(bytes.length / 2).keys()]
    return [rows, rows.map(row => {
      const share = raw.getUint16(2 * row, true) / 65534
      return share > 1 ? null : low * (1 - share) + high * share
    })]
  }
  const open = (svg, box) => {
    const last = Math.max(svg.dataset.length - 1, 1), data = decode(svg.dataset)
    const spans = svg.dataset.spans.split(";").filter(one => one).map(one => one.split(" "))
    const lanes = new Set(svg.dataset.lanes.split(" "))
    const bands = u => {
      const {left, top, width, height} = u.bbox
      u.ctx.save()
      u.ctx.beginPath(); u.ctx.rect(left, top, width, height); u.ctx.clip()
      for (const [kind, start, end] of spans) {
        const from = u.valToPos(start - 0.5, "x", true), to = u.valToPos(+end + 0.5, "x", true)
        u.ctx.globalAlpha = 0.3
        u.ctx.fillStyle = colour(kind == "guess" ? "--guess" : "--label")
        u.ctx.fillRect(from, kind == "guess" ? top + height / 2 : top, Math.max(to - from, 2), height / lanes.size)
      }
      u.ctx.restore()
    }
    const axis = {stroke: colour("--quiet"), grid: {stroke: colour("--grid")}, ticks: {stroke: colour("--grid")}}
    const chart = new uPlot({
      width: Math.max(box.clientWidth, 200), height: 260, scales: {x: {time: false}}, axes: [axis, axis],
      cursor: {drag: {x: true, y: false}}, hooks: {drawClear: [bands]},
      series: [{label: "row", value: (u, row) => row ?? "–"}, {
        label: "value", stroke: colour("--ink"), width: 1.2,
        value: (u, value) => value == null ? "–" : String(+value.toPrecision(5)),
      }],
    }, data, box)
    const show = (min, max) => {
      const span = Math.min(Math.max(max - min, 4), last), from = Math.min(Math.max(min, 0), last - span)
      chart.setScale("x", {min: from, max: from + span})
    }
    const zoom = (factor, at) => {
      const {min, max} = chart.scales.x
      show(at - (at - min) * factor, at + (max - at) * factor)
    }
    const move = share => {
      const {min, max} = chart.scales.x
      show(min + share * (max - min), max + share * (max - min))
    }
    chart.over.addEventListener("wheel", event => {
      event.preventDefault()
      const sideways = event.deltaX || (event.shiftKey ? event.deltaY : 0)
      if (sideways) return move(Math.sign(sideways) * 0.1)
      zoom(event.deltaY < 0 ? 0.8 : 1.25, chart.posToVal(event.offsetX, "x"))
    }, {passive: false})
    box.addEventListener("keydown", event => {
      const middle = (chart.scales.x.min + chart.scales.x.max) / 2
      const known = {
        "+": () => zoom(0.5, middle), "-": () => zoom(2, middle), "0": () => show(0, last),
        ArrowLeft: () => move(-0.1), ArrowRight: () => move(0.1),
      }[event.key == "=" ? "+" : event.key]
      if (!known || event.ctrlKey || event.metaKey || event.altKey) return
      event.preventDefault()
      known()
      chart.setCursor({left: chart.over.clientWidth / 2, top: chart.over.clientHeight / 2})
    })
    new ResizeObserver(() => box.clientWidth && chart.setSize({width: box.clientWidth, height: 260})).observe(box)
  }
  for (const svg of document.querySelectorAll("svg.panel[data-values]")) {
    const button = document.createElement("button"), box = document.createElement("div")
    button.type = "button"
    button.textContent = "look closely"
    button.className = "zoom"
    box.className = "zoomed"
    box.hidden = true
    box.tabIndex = 0
    box.setAttribute("role", "group")
    box.setAttribute("aria-label", `${svg.querySelector("title").textContent}: + and - zoom, arrows move, 0 shows all`)
    button.addEventListener("click", () => {
      box.hidden = !box.hidden
      svg.toggleAttribute("hidden", !box.hidden)
      button.setAttribute("aria-expanded", String(!box.hidden))
      button.textContent = box.hidden ? "look closely" : "back"
      if (!box.hidden && !box.firstChild) open(svg, box)
      if (!box.hidden) box.focus()
    })
    svg.after(box, button)
  }
})()
