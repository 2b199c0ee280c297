// Draws the figures the report holds: keeps the rows that pass the filters, follows the theme, marks what is selected.

// The buttons are named one by one, so that none can send the chart anywhere.
const CONFIG = { responsive: true, displaylogo: false, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] };
const charts = [];

function pathOf(trace, path) {
  return path.split(".").reduce((value, step) => value[step], trace);
}

function withPath(trace, path, value) {
  const [step, ...rest] = path.split(".");
  return { ...trace, [step]: rest.length ? withPath(trace[step], rest.join("."), value) : value };
}

function kept(trace, keep) {
  if (!trace.meta?.rows) return trace;
  const index = [];
  trace.meta.rows.forEach((number, i) => { if (number === null || keep(number)) index.push(i); });
  if (index.length === trace.meta.rows.length) return trace;
  const copy = trace.meta.along.reduce((found, path) => {
    const values = pathOf(trace, path);
    return withPath(found, path, index.map((i) => values[i]));
  }, trace);
  return { ...copy, meta: { rows: index.map((i) => trace.meta.rows[i]) } };
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { ink: read("--ink"), soft: read("--soft"), panel: read("--panel"), line: read("--line") };
}

function themed(layout) {
  const { ink, soft, panel, line } = colours();
  return {
    ...layout,
    title: undefined,
    uirevision: "keep",
    font: { ...layout.font, color: soft },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink },
    hoverlabel: { ...layout.hoverlabel, bgcolor: panel, bordercolor: line, font: { ...layout.hoverlabel.font, color: ink } },
  };
}

// Rings with letters around the selected models, and a dashed one where the keyboard stands.
function rings() {
  const { ink } = colours();
  const marks = state.selected.map((number, i) => ({ row: byNumber.get(number), text: LETTERS[i] }));
  const visible = marks.filter(({ row }) => passes(row));
  const cursor = byNumber.get(state.cursor);
  const ring = (found, text, dash) => ({
    type: "scatter", mode: "markers+text", showlegend: false, hoverinfo: "skip",
    x: found.map((row) => row.latency_ms), y: found.map((row) => row.accuracy), text,
    textposition: "top center", textfont: { color: ink, size: 13, weight: 650 },
    marker: { symbol: dash ? "square-open" : "circle-open", size: 27, color: ink, line: { width: dash ? 1 : 1.75 } },
  });
  return [
    ring(visible.map(({ row }) => row), visible.map(({ text }) => text), false),
    ring(cursor && passes(cursor) ? [cursor] : [], [""], true),
  ];
}

// Outlines around the selected rows of a heat map.
function outlines(layout) {
  const { ink } = colours();
  const order = report.map_rows;
  const marks = state.selected.filter((number) => order.includes(number) && shown(number));
  return {
    shapes: marks.map((number) => ({
      type: "rect", xref: "paper", x0: 0, x1: 1, yref: "y", line: { color: ink, width: 1.75 },
      y0: order.indexOf(number) - 0.5, y1: order.indexOf(number) + 0.5,
    })),
    annotations: [...(layout.annotations ?? []), ...marks.map((number) => ({
      text: `<b>${letterOf(number)}</b>`, xref: "paper", x: 1, xanchor: "left", yref: "y", y: order.indexOf(number),
      showarrow: false, xshift: 4, font: { color: ink, size: 13 },
    }))],
  };
}

const extras = {
  pareto: { traces: rings },
  layer_formats: { layout: outlines },
  layer_channels: { layout: outlines },
};
// What decides which rows a chart keeps, and the rows themselves.
const FILTERED = { key: () => state.limits, keep: shown };
const keepers = { layer_latency: { key: () => state.chosen, keep: (number) => number === state.chosen } };
const whenIdle = window.requestIdleCallback ?? ((call) => setTimeout(call, 50));

class Chart {
  constructor(host) {
    this.name = host.dataset.chart;
    this.figure = report.figures[this.name];
    const { text, subtitle } = this.figure.layout.title;
    this.plot = el("div", { class: "plot", role: "img", "aria-label": `${text}. ${subtitle?.text ?? ""}` });
    this.plot.style.minHeight = `${this.figure.layout.height}px`;
    host.append(el("h2", {}, text), el("p", { class: "sub" }, subtitle?.text ?? ""), this.plot);
    this.keeper = keepers[this.name] ?? FILTERED;
    this.stale = true;
    this.near = false;
    new IntersectionObserver(([entry]) => {
      this.near = entry.isIntersecting;
      this.draw();
    }, { rootMargin: "500px" }).observe(this.plot);
  }

  refresh() {
    this.stale = true;
    this.draw();
  }

  waits() {
    return this.stale && this.plot.offsetParent !== null;
  }

  // The same objects as long as the same rows are kept, by which Plotly sees that nothing has changed.
  traces() {
    const key = this.keeper.key();
    if (key !== this.key) {
      this.key = key;
      this.kept = this.figure.data.map((trace) => kept(trace, this.keeper.keep));
    }
    return this.kept;
  }

  draw(force = false) {
    if (!this.waits() || !(this.near || force)) return;
    this.stale = false;
    const extra = extras[this.name] ?? {};
    const layout = themed(this.figure.layout);
    const traces = [...this.traces(), ...(extra.traces?.() ?? [])];
    Plotly.react(this.plot, traces, { ...layout, ...extra.layout?.(layout) }, CONFIG);
    if (!this.listening && this.name !== "layer_latency") this.listen();
  }

  listen() {
    this.listening = true;
    this.plot.on("plotly_click", ({ points }) => {
      for (const { data, pointNumber } of points) {
        const number = data.meta?.rows?.[Array.isArray(pointNumber) ? pointNumber[0] : pointNumber];
        if (byNumber.has(number)) return toggle(number);
      }
    });
  }
}

// Arrow keys walk along the models by latency, Enter selects.
function walk(chart) {
  chart.plot.tabIndex = 0;
  chart.plot.setAttribute("role", "application");
  const said = el("p", { class: "hint", role: "status" });
  chart.plot.after(said);
  chart.plot.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1 };
    if (event.key in steps) {
      const along = rows.filter(passes).sort((a, b) => a.latency_ms - b.latency_ms);
      const at = along.findIndex((row) => row.number === state.cursor);
      const next = along[Math.min(along.length - 1, Math.max(0, at + steps[event.key]))];
      if (next) update({ cursor: next.number });
      said.textContent = next ? `${nameOf(next)}: ${milliseconds(next.latency_ms)}, ${metric(next.accuracy)}` : "";
    } else if ((event.key === "Enter" || event.key === " ") && state.cursor !== null) {
      toggle(state.cursor);
    } else return;
    event.preventDefault();
  });
}

// Draws what nobody has scrolled to yet, one chart at a time, while the browser has nothing better to do.
function drawAhead() {
  const next = charts.find((chart) => chart.waits());
  if (!next) return;
  whenIdle(() => {
    next.draw(true);
    drawAhead();
  });
}

function startCharts() {
  for (const host of document.querySelectorAll("[data-chart]")) {
    const chart = new Chart(host);
    charts.push(chart);
    if (host.dataset.keys) walk(chart);
  }
  watchers.push(() => charts.forEach((chart) => chart.refresh()));
  addEventListener("beforeprint", () => charts.forEach((chart) => chart.draw(true)));
  for (const tab of document.querySelectorAll("[data-tab]")) {
    tab.addEventListener("click", () => {
      for (const other of document.querySelectorAll("[data-tab]")) {
        other.setAttribute("aria-selected", other === tab);
        document.querySelector(`[data-chart="${other.dataset.tab}"]`).hidden = other !== tab;
      }
      charts.forEach((chart) => chart.refresh());
    });
  }
}
