// The three sliders: each step is the number of one evaluation, so outliers do not make them coarse.

const sliders = {
  latency: { value: (row) => row.latency_ms, show: milliseconds, openAtTop: true },
  accuracy: { value: (row) => row.accuracy, show: metric, openAtTop: !units.higher_is_better },
  size: { value: (row) => row.size_mb, show: megabytes, openAtTop: true },
};

function startFilters() {
  document.getElementById("accuracy-word").textContent =
    `${units.label[0].toUpperCase()}${units.label.slice(1)} at ${units.higher_is_better ? "least" : "most"}`;
  for (const [name, slider] of Object.entries(sliders)) {
    slider.steps = [...new Set(rows.map(slider.value))].sort((a, b) => a - b);
    slider.input = document.getElementById(`limit-${name}`);
    slider.output = document.getElementById(`shown-${name}`);
    slider.open = slider.openAtTop ? slider.steps.length - 1 : 0;
    Object.assign(slider.input, { min: 0, max: Math.max(0, slider.steps.length - 1), step: 1, value: slider.open });
    slider.input.disabled = slider.steps.length < 2;
    slider.input.addEventListener("input", readSliders);
  }
  document.getElementById("filters").addEventListener("reset", (event) => {
    event.preventDefault();
    for (const slider of Object.values(sliders)) slider.input.value = slider.open;
    readSliders();
  });
  watchers.push(showFilters);
}

function readSliders() {
  const limits = {};
  for (const [name, slider] of Object.entries(sliders)) {
    const at = Number(slider.input.value);
    limits[name] = at === slider.open ? null : slider.steps[at];
  }
  update({ limits });
}

function showFilters() {
  for (const [name, slider] of Object.entries(sliders)) {
    const limit = state.limits[name];
    slider.output.textContent = limit === null ? "any" : slider.show(limit);
    slider.input.setAttribute("aria-valuetext", slider.output.textContent);
  }
  document.getElementById("count").textContent = `${rows.filter(passes).length} of ${rows.length} models`;
  showPicks();
  showChips();
}

function showPicks() {
  const pool = rows.filter((row) => passes(row) && row.status !== "infeasible" && (!report.final || row.final));
  const better = units.higher_is_better ? 1 : -1;
  const kinds = [
    ["Fastest", (row) => -row.latency_ms, (row) => milliseconds(row.latency_ms)],
    ["Most accurate", (row) => better * row.accuracy, (row) => metric(row.accuracy)],
    ["Smallest", (row) => -row.size_mb, (row) => megabytes(row.size_mb)],
  ];
  const list = document.getElementById("picks");
  if (!pool.length) return list.replaceChildren(el("li", { class: "empty" }, "No finalist or baseline meets these limits."));
  list.replaceChildren(...kinds.map(([word, score, show]) => {
    const best = pool.reduce((a, b) => (score(b) > score(a) ? b : a));
    const rest = word === "Fastest" ? metric(best.accuracy) : milliseconds(best.latency_ms);
    return el("li", {}, el("button", { type: "button", onclick: () => select(best.number) },
      el("strong", {}, word), el("strong", {}, show(best)),
      best.baseline ? el("span", {}, nameOf(best)) : el("code", {}, best.key), el("span", {}, rest)));
  }));
}

function select(number) {
  if (state.selected.includes(number)) update({ chosen: number });
  else toggle(number);
}

function showChips() {
  const chips = state.selected.map((number, i) => {
    const row = byNumber.get(number);
    return el("li", {}, el("span", { class: "letter" }, LETTERS[i]),
      el("span", {}, `${nameOf(row)}, ${milliseconds(row.latency_ms)}`),
      el("button", { type: "button", "aria-label": `Deselect ${nameOf(row)}`, onclick: () => toggle(number) }, "×"));
  });
  document.getElementById("chips").replaceChildren(...(chips.length ? chips : [el("li", { class: "empty" }, "Nothing selected.")]));
}
