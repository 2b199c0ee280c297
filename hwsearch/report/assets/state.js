// The facts, what is filtered and selected, and who is told when that changes.

const ARRAYS = { i1: Int8Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array };

// Long columns of numbers come as bytes in base 64.
function unpacked(value) {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return value;
  if (value.bdata !== undefined) return new ARRAYS[value.dtype](Uint8Array.from(atob(value.bdata), (byte) => byte.charCodeAt(0)).buffer);
  return Object.fromEntries(Object.entries(value).map(([name, entry]) => [name, unpacked(entry)]));
}

const report = JSON.parse(document.getElementById("report-data").textContent);
for (const figure of Object.values(report.figures)) figure.data = figure.data.map(unpacked);
const { units } = report;
const rows = report.evaluations;
const byNumber = new Map(rows.map((row) => [row.number, row]));
const byKey = new Map(rows.map((row) => [row.key, row]));
const LETTERS = ["A", "B", "C", "D"];

const state = {
  limits: { latency: null, accuracy: null, size: null },
  selected: report.selected.slice(0, LETTERS.length),
  chosen: report.selected[0] ?? null,
  cursor: null,
  frontOnly: false,
  query: "",
  sort: { column: "latency_ms", down: false },
};

const watchers = [];
let scheduled = false;

function update(change) {
  Object.assign(state, change);
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    for (const watcher of watchers) watcher();
  });
}

function filtering() {
  return Object.values(state.limits).some((limit) => limit !== null);
}

function passes(row) {
  const { latency, accuracy, size } = state.limits;
  const worse = units.higher_is_better ? row.accuracy < accuracy : row.accuracy > accuracy;
  return !((latency !== null && row.latency_ms > latency)
    || (accuracy !== null && worse)
    || (size !== null && row.size_mb > size));
}

// An evaluation without numbers (a failure) is shown as long as nothing is asked of the numbers.
function shown(number) {
  const row = byNumber.get(number);
  return row ? passes(row) : !filtering();
}

function toggle(number) {
  const selected = state.selected.includes(number)
    ? state.selected.filter((other) => other !== number)
    : [...state.selected, number].slice(-LETTERS.length);
  const chosen = selected.includes(number) ? number : selected.at(-1) ?? state.chosen;
  update({ selected, chosen });
}

const baseline = (name) => rows.find((row) => row.baseline === name);
const letterOf = (number) => LETTERS[state.selected.indexOf(number)];
const nameOf = (row) => (row.baseline ? `uniform ${row.baseline}` : row.key);
const milliseconds = (value) => `${value.toFixed(3)} ms`;
const digits = (value) => (value * (1 + 1e-12)).toFixed(units.decimals); // halves upwards, as in the headline
const metric = (value) => digits(value) + units.suffix;
const megabytes = (value) => `${value.toFixed(3)} MB`;
const percent = (ratio) => `${(100 * ratio).toFixed(0)} %`;
const command = (row) => `${report.export} --key ${row.key} --out out/${row.key}`;

// A DOM node; strings become text, never markup.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function interval(low, high, decimals) {
  if (low === null || high === null) return null;
  return el("span", { class: "interval" }, ` [${low.toFixed(decimals)}, ${high.toFixed(decimals)}]`);
}

function exportCommand(row) {
  const text = command(row);
  const code = el("code", { title: text }, text);
  const button = el("button", { type: "button", title: text, "aria-label": `Copy the export command of ${row.key}` }, "Copy");
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text, code)) ? "Copied" : "Select";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return el("span", { class: "command" }, code, button);
}

async function copied(text, node) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(node);
    return document.execCommand("copy");
  }
}
