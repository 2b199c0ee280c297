// The table of evaluations: follows the sliders, sorts, searches, downloads what it shows.

const COLUMNS = [
  { name: "number", title: "#", number: true },
  { name: "key", title: "Model", show: (row) => [row.baseline ? el("span", { title: row.key }, nameOf(row)) : el("code", {}, row.key)] },
  { name: "status", title: "Status", show: (row) => [statusMark(row)] },
  { name: "latency_ms", title: "Latency (ms)", number: true,
    show: (row) => [row.latency_ms.toFixed(3), interval(row.latency_low, row.latency_high, 3)] },
  { name: "accuracy", title: units.axis, number: true,
    show: (row) => [digits(row.accuracy), interval(row.accuracy_low, row.accuracy_high, units.decimals)] },
  { name: "speedup", title: "× fp32", number: true, show: (row) => [row.speedup === null ? "–" : row.speedup.toFixed(2)] },
  { name: "size_mb", title: "Size (MB)", number: true, show: (row) => [row.size_mb.toFixed(3)] },
  { name: "energy_mj", title: "Energy (mJ)", number: true,
    show: (row) => [row.energy_mj === null ? "–" : row.energy_mj.toPrecision(3), row.energy_source === "modelled" ? " modelled" : ""] },
  { name: "macs_ratio", title: "MACs", number: true, show: (row) => [percent(row.macs_ratio)] },
  { name: "kept_ratio", title: "Channels", number: true, show: (row) => [percent(row.kept_ratio)] },
  { name: "training_minutes", title: "Trained (min)", number: true, show: (row) => [row.training_minutes ? row.training_minutes.toFixed(1) : "–"] },
  { name: "precisions", title: "Formats", show: (row) => [clipped(row.precisions)] },
  { name: "dropped", title: "Dropped", show: (row) => [clipped(row.dropped || "–")] },
  { name: "p99_ms", title: "p99 (ms)", number: true, show: (row) => [row.p99_ms?.toFixed(3) ?? "–"] },
  { name: "source", title: "Latency", show: (row) => [row.source] },
  { name: "split", title: "Split" },
].filter((column) => !["training_minutes", "energy_mj"].includes(column.name) || rows.some((row) => row[column.name]));
const CSV_COLUMNS = ["number", "key", "baseline", "status", "split", "latency_ms", "latency_low", "latency_high", "p99_ms",
  "source", "accuracy", "accuracy_low", "accuracy_high", "size_mb", "energy_mj", "energy_source", "macs_ratio", "kept_ratio",
  "training_minutes", "precisions", "dropped"];

const clipped = (text) => el("span", { class: "clipped", title: text }, text);

function statusMark(row) {
  const colour = row.baseline ? report.colours[row.baseline] : report.colours[row.status];
  const open = !row.baseline && (row.status === "finalist" || row.status === "infeasible" || (row.status === "front" && !row.final));
  const look = `border-color:${colour};` + (open ? "" : `background:${colour}`);
  const status = row.status === "infeasible" ? "outside the limits" : row.status;
  const words = [row.baseline ? "baseline" : null, row.baseline && row.status !== "front" ? null : status];
  const over = Object.entries(row.violations).map(([name, by]) => `${name} over by ${by.toPrecision(3)}`).join(", ");
  return el("span", { class: "status", title: over || null }, el("span", { class: "dot", style: look }),
    words.filter(Boolean).join(", ") + (row.baseline && row.status === "infeasible" ? ", outside the limits" : ""));
}

function listed() {
  const query = state.query.trim().toLowerCase();
  const { column, down } = state.sort;
  return rows
    .filter((row) => passes(row) && (!state.frontOnly || row.on_front || row.baseline))
    .filter((row) => !query || [row.key, row.baseline, row.status, row.precisions, row.dropped].join(" ").toLowerCase().includes(query))
    .sort((a, b) => (down ? -1 : 1) * order(a[column], b[column]) || a.number - b.number);
}

function order(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "number" ? a - b : String(a).localeCompare(String(b));
}

function showTable() {
  const focused = document.activeElement?.dataset?.focus;
  const head = el("thead", {}, el("tr", {}, el("th", {}), ...COLUMNS.map(headCell), el("th", { class: "last" }, "Export")));
  const body = el("tbody", {}, ...listed().map(knownRow));
  document.getElementById("table").replaceChildren(head, body);
  if (focused) document.querySelector(`[data-focus="${focused}"]`)?.focus();
}

function headCell({ name, title, number }) {
  const { column, down } = state.sort;
  const sorted = column === name ? (down ? "descending" : "ascending") : null;
  const arrow = sorted ? (down ? " ↓" : " ↑") : "";
  const flip = () => update({ sort: { column: name, down: column === name && !down } });
  return el("th", { class: number ? "number" : null, scope: "col", "aria-sort": sorted },
    el("button", { type: "button", "data-focus": `sort-${name}`, onclick: flip }, title + arrow));
}

// Hundreds of rows take long to make, so each is made again only when its letter changes.
const madeRows = new Map();

function knownRow(row) {
  const letter = letterOf(row.number);
  const known = madeRows.get(row.number);
  if (known && known.letter === letter) return known.node;
  const node = bodyRow(row, letter);
  madeRows.set(row.number, { letter, node });
  return node;
}

function bodyRow(row, letter) {
  const box = el("input", { type: "checkbox", checked: Boolean(letter), "data-focus": `row-${row.number}`,
    "aria-label": `Compare ${nameOf(row)}`, onchange: () => toggle(row.number) });
  const cells = COLUMNS.map(({ name, show, number }) =>
    el("td", { class: number ? "number" : null }, ...(show ? show(row) : [String(row[name])])));
  return el("tr", { class: letter ? "picked" : null }, el("td", {}, box, letter ? ` ${letter}` : ""), ...cells,
    el("td", { class: "last" }, exportCommand(row)));
}

function asCsv(found) {
  const cell = (value) => (/[",\n]/.test(String(value ?? "")) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));
  return [[...CSV_COLUMNS, "export"].join(","),
    ...found.map((row) => [...CSV_COLUMNS.map((name) => row[name]), command(row)].map(cell).join(","))].join("\n") + "\n";
}

function startTable() {
  document.getElementById("front-only").addEventListener("change", (event) => update({ frontOnly: event.target.checked }));
  document.getElementById("find").addEventListener("input", (event) => update({ query: event.target.value }));
  document.getElementById("csv").addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([asCsv(listed())], { type: "text/csv" }));
    el("a", { href: url, download: `${report.name}.csv` }).click();
    URL.revokeObjectURL(url);
  });
  watchers.push(showTable);
}
