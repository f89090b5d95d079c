// Page behaviour beyond HTMX: confirmation dialog, shortcut keys, clocks, charts, and a notice when
// the server is unreachable. Loaded once with `defer`. A strict CSP forbids inline scripts. Every
// button works without this script.
"use strict";

const styles = getComputedStyle(document.documentElement);
const colour = (name) => styles.getPropertyValue(name).trim();
const each = (selector, act) => document.querySelectorAll(selector).forEach(act);
const byId = (id) => document.getElementById(id);

// --- Confirmation: before an irreversible action the server returns a question for the dialog. --
let shownState = "";
const currentState = () => (byId("live") ? byId("live").dataset.state || "" : "");

function openQuestion() {
  shownState = currentState();
  byId("confirm-changed").hidden = true;
  if (!byId("confirm").open) byId("confirm").showModal();
  (document.querySelector("#confirm [autofocus]") || byId("confirm-yes")).focus();
}

// The state may change while the dialog is open: then the dialog shows the current state.
function showStateChange() {
  if (!byId("confirm").open || currentState() === shownState) return;
  const box = byId("confirm-changed");
  box.textContent = `This changed while you were reading. Now: ${byId("live").dataset.say || ""}`;
  box.hidden = false;
}

document.addEventListener("htmx:afterSwap", (event) => {
  if (event.detail.target.id === "confirm-body") openQuestion();
});
// The confirmation is sent: the response updates the page, or is another question.
document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.detail.elt.closest("#confirm")) byId("confirm").close();
});
document.addEventListener("click", (event) => {
  if (event.target.closest("[data-close]")) byId("confirm").close();
});

// --- Keys: `data-key` clicks its button, except in input fields and while the dialog is open. ---
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest("input, select, textarea, [contenteditable]")) return;
  const button = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (!button || byId("confirm").open) return;
  event.preventDefault();
  button.click();
});

// --- Polling --------------------------------------------------------------------------------
const isPoll = (detail) => detail.requestConfig.verb === "get";

document.addEventListener("htmx:beforeRequest", (event) => {
  // A hidden page does not poll; it polls at once when it becomes visible.
  if (document.hidden && isPoll(event.detail)) event.preventDefault();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && byId("live")) htmx.trigger("#live", "look");
});

document.addEventListener("htmx:beforeSwap", (event) => {
  const { xhr, target } = event.detail;
  if (xhr.responseURL.includes("/login/")) return window.location.reload();
  // Keep a clicked button until its response: htmx drops the response of a removed element.
  if (isPoll(event.detail) && target.querySelector(".htmx-request")) event.detail.shouldSwap = false;
  keepScroll(target);
});

// Scroll positions and open details survive a swap, also outside of the target.
let scrolled = {};
let opened = {};
function keepScroll(target) {
  opened = {};
  each("details[id]", (box) => { opened[box.id] = box.open; });
  scrolled = {};
  target.querySelectorAll(".scroll[id]").forEach((box) => { scrolled[box.id] = box.scrollLeft; });
}

document.addEventListener("htmx:afterSettle", () => {
  for (const [id, left] of Object.entries(scrolled)) {
    const box = document.getElementById(id);
    if (box) box.scrollLeft = left;
  }
  for (const [id, isOpen] of Object.entries(opened)) {
    const box = document.getElementById(id);
    if (box) box.open = isOpen;
  }
  refresh();
  showStateChange();
});

let answeredAt = new Date();
function showOffline(event) {
  const box = document.getElementById("offline");
  const status = event.detail.xhr && event.detail.xhr.status;
  const reason = status ? `the server answered ${status}` : "the server does not respond";
  box.textContent = `Not updated since ${answeredAt.toLocaleTimeString()}: ${reason}. Retrying.`;
  box.hidden = false;
}
document.addEventListener("htmx:sendError", showOffline);
document.addEventListener("htmx:responseError", showOffline);
document.addEventListener("htmx:afterRequest", (event) => {
  if (!event.detail.successful) return;
  answeredAt = new Date();
  document.getElementById("offline").hidden = true;
});

// --- Clocks: the server sends deadlines and its time; the browser counts down. -------------------
let skewMs = 0;

function readServerClock() {
  const stamped = document.querySelector("[data-now]:not([data-read])");
  if (!stamped) return;
  stamped.dataset.read = "1";
  skewMs = Date.parse(stamped.dataset.now) - Date.now();
}

function formatDuration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s >= 3600) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  if (s >= 60) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${s} s`;
}

function tick() {
  const now = Date.now() + skewMs;
  each("[data-until]", (el) => {
    const left = (Date.parse(el.dataset.until) - now) / 1000;
    el.textContent = left > 0 ? formatDuration(left) : el.dataset.over || "0 s";
  });
  each("[data-since]", (el) => {
    el.textContent = formatDuration((now - Date.parse(el.dataset.since)) / 1000);
  });
  each("progress[data-from]", (el) => {
    const from = Date.parse(el.dataset.from);
    el.value = Math.min(1, Math.max(0, (now - from) / (Date.parse(el.dataset.to) - from)));
  });
}

// --- Charts: figures are JSON; colours come from the page, for light and dark themes. -----------
const drawn = new Map();

function translucent(hex) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},0.35)`;
}

function applyTheme(figure) {
  const line = colour("--line");
  const axis = { gridcolor: colour("--grid"), linecolor: line, zerolinecolor: line };
  const data = figure.data.map((trace) => {
    const ink = colour(trace.meta || "--muted");
    return {
      ...trace,
      line: { width: 2, ...trace.line, color: ink },
      marker: { ...trace.marker, color: ink },
      ...(trace.fill || trace.stackgroup ? { fillcolor: translucent(ink) } : {}),
    };
  });
  const layout = {
    ...figure.layout,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: colour("--muted") },
    hoverlabel: {
      bgcolor: colour("--surface"), bordercolor: line, font: { color: colour("--text") },
    },
    xaxis: { ...axis, ...figure.layout.xaxis }, yaxis: { ...axis, ...figure.layout.yaxis },
  };
  return { data, layout };
}

function draw(source, again) {
  const box = document.getElementById(source.id.replace(/-data$/, ""));
  if (!box || (!again && drawn.get(source.id) === source.textContent)) return;
  drawn.set(source.id, source.textContent);
  const { data, layout } = applyTheme(JSON.parse(source.textContent));
  box.replaceChildren(...(box.classList.contains("js-plotly-plot") ? box.childNodes : []));
  Plotly.react(box, data, layout, { responsive: true, displayModeBar: false });
}

// The chart library has several megabytes: it is loaded after the page is usable.
function fetchCharts() {
  const source = document.querySelector("meta[name=charts]").content;
  if (!source) return;
  const script = document.createElement("script");
  script.src = source;
  script.addEventListener("load", () => drawAll(false));
  document.head.append(script);
}
window.addEventListener("load", () => setTimeout(fetchCharts, 0));

function drawAll(again) {
  if (typeof Plotly === "undefined") return;
  each('script[type="application/json"][id$="-data"]', (source) => draw(source, again));
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll(true));

// Download a figure as PNG, on the page's background instead of a transparent one.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-download]");
  const box = button && document.getElementById(button.dataset.download);
  if (!box || !box.data) return;
  const layout = { ...box.layout, paper_bgcolor: colour("--surface") };
  Plotly.downloadImage({ data: box.data, layout }, {
    format: "png", filename: button.dataset.file, scale: 2,
    width: box.clientWidth, height: box.clientHeight,
  });
});

// --- Choices: `data-when="kind:mean,ratio"` shows a field only while it applies. A hidden field is
// disabled, so it is not sent, and keeps its value. -----------------------------------------------
function applies(field, form) {
  return field.dataset.when.split(" ").every((rule) => {
    const [name, values] = rule.split(":");
    const choice = form.querySelector(`[data-choice="${name}"]`);
    return !choice || values.split(",").includes(choice.value);
  });
}

function showApplicableFields() {
  each("[data-when]", (field) => {
    const form = field.closest("[data-choices], form");
    if (!form) return;
    field.disabled = !applies(field, form);
    field.closest("div").hidden = field.disabled;
  });
}

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-choice]")) showApplicableFields();
  if (event.target.matches("[data-submit]")) event.target.form.submit();
});

// --- Rows of the plan form ------------------------------------------------------------------
function renumber(rows) {
  rows.querySelectorAll("[data-row]").forEach((row, i) => {
    row.querySelector("[data-position]").textContent = i + 1;
  });
}

document.addEventListener("click", (event) => {
  const add = event.target.closest("[data-add-row]");
  const remove = event.target.closest("[data-remove-row]");
  if (add) {
    const rows = document.getElementById(add.dataset.addRow);
    const total = document.querySelector(`[name$="${add.dataset.total || ""}-TOTAL_FORMS"]`);
    const empty = document.getElementById(add.dataset.empty || "empty-row").innerHTML;
    const html = empty.replaceAll("__prefix__", total.value);
    rows.insertAdjacentHTML("beforeend", html);
    total.value = Number(total.value) + 1;
    renumber(rows);
    showApplicableFields();
    rows.lastElementChild.querySelector("input, select").focus();
  } else if (remove) {
    const row = remove.closest("[data-row]");
    const rows = row.parentElement;
    // The numbers of the form may have gaps: the server ignores an emptied row.
    row.querySelectorAll("input, textarea, [data-empties]").forEach((input) => {
      if (input.type === "checkbox") input.checked = false;
      else input.value = "";
    });
    row.hidden = true;
    row.removeAttribute("data-row");
    renumber(rows);
  }
});

function refresh() {
  readServerClock();
  tick();
  drawAll(false);
  showApplicableFields();
}
document.addEventListener("DOMContentLoaded", refresh);
setInterval(tick, 1000);
