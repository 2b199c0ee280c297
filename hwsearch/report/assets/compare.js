// Up to four models side by side: numbers with intervals, then only the choices and layers that differ.

const FACTS = [
  ["Latency", (row) => row.latency_ms, (row) => [milliseconds(row.latency_ms), interval(row.latency_low, row.latency_high, 3)],
    (row) => [row.latency_low, row.latency_high], true],
  ["", (row) => row.accuracy, (row) => [metric(row.accuracy), interval(row.accuracy_low, row.accuracy_high, units.decimals)],
    (row) => [row.accuracy_low, row.accuracy_high], !units.higher_is_better],
  ["Against fp32", null, (row) => [versus(row, baseline("fp32"))]],
  ["Against uniform int8", null, (row) => [versus(row, baseline("int8"))]],
  ["p99 latency", null, (row) => [row.source === "measured" ? milliseconds(row.p99_ms) : `none: ${row.source}`]],
  ["File size", (row) => row.size_mb, (row) => [megabytes(row.size_mb)], (row) => [row.size_mb, row.size_mb], true],
  ["MACs", null, (row) => [`${percent(row.macs_ratio)} of the given network`]],
  ["Number formats", null, (row) => [row.precisions]],
  ["Channels kept", null, (row) => [percent(row.kept_ratio)]],
  ["Branches dropped", null, (row) => [row.dropped || "none"]],
  ["Scored on", null, (row) => [`${row.split} split${row.final ? ", measured again with all finalists" : ""}`]],
  ["Tied with", null, (row) => [row.tied_with.map((key) => nameOf(byKey.get(key) ?? { key })).join(", ") || "none"]],
];

function versus(row, base) {
  if (!base || base === row) return "–";
  const tied = row.latency_low <= base.latency_high && base.latency_low <= row.latency_high;
  const gain = row.accuracy - base.accuracy;
  const sign = gain > 0 ? "+" : gain < 0 ? "−" : "±";
  const digits = units.suffix ? 2 : units.decimals;
  const points = `${sign}${Math.abs(gain).toFixed(digits)} ${units.points}`;
  return `${tied ? "≈ " : ""}${(base.latency_ms / row.latency_ms).toFixed(2)}× as fast, ${points}`;
}

// The one model whose interval is clear of all others, or none.
function clearlyBest(found, range, lowerIsBetter) {
  const clear = (a, b) => (lowerIsBetter ? range(a)[1] < range(b)[0] : range(a)[0] > range(b)[1]);
  if (found.length < 2 || found.some((row) => range(row).includes(null))) return null;
  return found.find((row) => found.every((other) => other === row || clear(row, other))) ?? null;
}

function showCompare() {
  const found = state.selected.map((number) => byNumber.get(number));
  const body = document.getElementById("compare-body");
  if (!found.length) return body.replaceChildren(el("p", { class: "empty" }, "Select models in the chart or the table."));
  const head = el("thead", {}, el("tr", {}, el("th"), ...found.map((row, i) =>
    el("th", { scope: "col" }, el("span", { class: "letter" }, LETTERS[i]), ` ${nameOf(row)}`))));
  const facts = FACTS.filter(([title]) => !title.startsWith("Against") || baseline(title.split(" ").at(-1)));
  const numbers = facts.map(([title, , show, range, lower]) => {
    const best = range ? clearlyBest(found, range, lower) : null;
    return line(title || units.label, found, (row) => el("td", { class: row === best ? "best" : null }, ...show(row)));
  });
  const commands = line("Export", found, (row) => el("td", {}, exportCommand(row)));
  body.replaceChildren(el("table", {}, head, el("tbody", {}, ...numbers, commands, ...differences(found))));
}

function line(title, found, cell, kind = null) {
  return el("tr", { class: kind }, el("th", { scope: "row" }, title), ...found.map(cell));
}

function differences(found) {
  if (found.length < 2) return [];
  const layers = report.layers.names.map((name, at) => ({ name, at, texts: found.map((row) => layerText(row, at)) }));
  const differing = layers.filter(({ texts }) => new Set(texts.map(String)).size > 1);
  const title = differing.length
    ? `Layers that differ: ${differing.length} of ${layers.length}`
    : "No layer differs.";
  const section = el("tr", { class: "section" }, el("th", { colspan: found.length + 1 }, title));
  return [section, ...differing.map(({ name, at }) => line(name, found, (row) => layerCell(row, at), "differs"))];
}

function layerFacts(row, at) {
  const { formats, requested, executed, kept: left, channels } = report.layers;
  const of = (codes) => formats[codes[row.number][at]] ?? null;
  return { requested: of(requested), executed: of(executed), kept: left[row.number][at], channels: channels[at] };
}

function layerText(row, at) {
  const { requested, kept: left, channels } = layerFacts(row, at);
  return requested === null ? "dropped" : `${requested}, ${left === channels ? `${channels}` : `${left} of ${channels}`} channels`;
}

function layerCell(row, at) {
  const { requested, executed } = layerFacts(row, at);
  const swatch = el("span", { class: "swatch", style: `background:${report.colours[requested] ?? "transparent"}` });
  const wrong = requested !== null && executed !== null && executed !== requested;
  return el("td", {}, swatch, layerText(row, at), wrong ? el("span", { class: "ran" }, `, ran in ${executed}`) : null);
}

// The model whose layers are timed below, and what is to be known about its profile.
function showChooser() {
  const chooser = document.getElementById("chosen");
  const numbers = new Set([...state.selected, ...(state.chosen === null ? [] : [state.chosen]),
    ...rows.filter((row) => row.final || row.on_front || row.baseline).map((row) => row.number)]);
  const listed = [...numbers].map((number) => byNumber.get(number)).sort((a, b) => a.latency_ms - b.latency_ms);
  chooser.replaceChildren(...listed.map((row) => el("option", { value: row.number, selected: row.number === state.chosen },
    [letterOf(row.number), nameOf(row), milliseconds(row.latency_ms)].filter(Boolean).join("  "))));
  const note = document.getElementById("layer-note");
  const facts = report.profiles[state.chosen];
  note.classList.toggle("wrong", Boolean(facts?.mismatched));
  note.textContent = facts ? profileNote(facts) : "";
}

function profileNote({ mismatched, unreported, unattributed, layers }) {
  const notes = [mismatched ? `${mismatched} of ${layers} layers ran in another format than requested`
    : unreported === layers ? "the runtime does not say which formats ran" : "every reported layer ran as requested"];
  if (unreported && unreported < layers) notes.push(`${unreported} not reported`);
  notes.push(unattributed === null ? "no profiled times" : `${percent(unattributed)} of the time belongs to no layer`);
  return notes.join("; ");
}

function startCompare() {
  document.getElementById("chosen").addEventListener("change", (event) => update({ chosen: Number(event.target.value) }));
  watchers.push(showCompare, showChooser);
  const best = byNumber.get(report.recommended);
  if (best) document.getElementById("ship").append(exportCommand(best));
}
