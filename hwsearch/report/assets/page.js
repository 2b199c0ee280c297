// Puts the page together: theme first, then the parts, then the first drawing.

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  document.getElementById("theme").textContent = name === "dark" ? "Light" : "Dark";
}

function rememberedTheme() {
  try {
    return localStorage.getItem("hwsearch-theme");
  } catch {
    return null; // storage is closed to local files in some browsers
  }
}

function startTheme() {
  setTheme(rememberedTheme() ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  document.getElementById("theme").addEventListener("click", () => {
    const name = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    setTheme(name);
    try {
      localStorage.setItem("hwsearch-theme", name);
    } catch { /* the theme then lasts as long as the page */ }
    update({});
  });
}

if (!rows.length) document.body.classList.add("bare");
startTheme();
startFilters();
startCompare();
startTable();
startCharts();
update({});
requestAnimationFrame(drawAhead);
