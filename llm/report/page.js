"use strict";
// The basis of the page: its data, the reader's choices, and functions that show text and numbers.
// Names and texts in the data may come from strangers. They become text nodes and nothing else;
// Plotly, which reads a kind of HTML, gets them from escaped() in plots.js.

const { document: report, extra } = JSON.parse(document.getElementById("data").textContent);
const points = report.points ?? [];
const runs = report.runs ?? [];
const keys = report.keys ?? [];
const measure = report.measure;
const best = report.answer?.best ?? null; // the index of a point

// ---- text and numbers

// Marks that reorder or hide the text around them are shown as escapes. Accents, Chinese and
// right-to-left letters stay as they are.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;

function visible(text, longest = Infinity) {
  const whole = String(text);
  const cut = whole.length > longest ? whole.slice(0, longest - 1) + "…" : whole;
  return cut.replace(HIDDEN, (mark) => "\\u" + mark.charCodeAt(0).toString(16).padStart(4, "0"));
}

// An element. A property that starts with "on" is a listener; strings among the children are text.
function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && !isUnknown(value)) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// A name from the data, cut after a length that fits a line; the whole name is its tooltip.
function named(text, longest = 120) {
  const whole = String(text);
  return el("bdi", { title: whole.length > longest ? visible(whole, 2000) : null }, visible(whole, longest));
}

const isUnknown = (value) => value === null || value === undefined;
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const plural = (count, thing) => `${count.toLocaleString("en")} ${thing}${count === 1 ? "" : "s"}`;
const DASH = "–";

function loss(value) {
  return isNumber(value) ? value.toFixed(4) : DASH;
}

// Three digits, as on the terminal: 862976 is 863k, 999950 is 1M.
function count(value) {
  if (!isNumber(value)) return DASH;
  for (const [size, letter] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= 0.9995 * size) return Number((value / size).toPrecision(3)) + letter;
  }
  return value.toFixed(0);
}

function bytes(value) {
  if (!isNumber(value)) return DASH;
  return value >= 2 ** 30 ? `${(value / 2 ** 30).toFixed(2)} GiB` : `${(value / 2 ** 20).toFixed(0)} MiB`;
}

function duration(value) {
  if (!isNumber(value)) return DASH;
  if (value < 120) return `${value.toPrecision(3)} s`;
  return value < 7200 ? `${(value / 60).toFixed(1)} min` : `${(value / 3600).toFixed(1)} h`;
}

function probability(value) {
  return value < 0.001 ? "p < 0.001" : `p = ${value.toFixed(value < 0.1 ? 3 : 2)}`;
}

// "optimizer.lr" is shown as "lr" where no other key ends in it, "schedule.name" as "schedule".
const ending = (key) => key.replace(/\.name$/, "").split(".").pop();

function short(key) {
  const last = ending(key);
  return keys.filter((other) => ending(other) === last).length > 1 ? key : last;
}

// "0.01" is the number 0.01 for sorting and for axes, "muon" stays a word.
function asNumber(value) {
  if (typeof value === "number") return value;
  const text = String(value ?? "").trim();
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : null;
}

// Numbers in their order, then words in theirs, then unknown values.
function compare(a, b) {
  if (isUnknown(a) || isUnknown(b)) return isUnknown(a) - isUnknown(b);
  const [x, y] = [asNumber(a), asNumber(b)];
  if (x !== null && y !== null) return x - y;
  if (x !== null || y !== null) return x === null ? 1 : -1;
  return String(a).localeCompare(String(b));
}

const distinct = (values) => [...new Set(values)].sort(compare);

// ---- the reader's choices: they are stored in the URL after "#", so that a link shows the same view

const DEFAULTS = {
  rows: "points",
  sort: "measure",
  down: false,
  filter: "",
  state: "",
  all: false,
  columns: [],
  open: [],
  picked: [],
  x: "step",
  loss: "val",
  logx: false,
  logy: false,
  smooth: 0,
  heatx: "",
  heaty: "",
  against: "parameters",
  logs: false,
};
let state = readState();

function readState() {
  const given = new URLSearchParams(location.hash.slice(1));
  const read = {};
  for (const [name, usual] of Object.entries(DEFAULTS)) {
    const text = given.get(name);
    if (text === null) read[name] = Array.isArray(usual) ? [...usual] : usual;
    else if (Array.isArray(usual)) read[name] = text.split(",").filter(Boolean);
    else if (typeof usual === "boolean") read[name] = text === "1";
    else if (typeof usual === "number") read[name] = Math.min(Math.max(Number(text) || 0, 0), 0.99);
    else read[name] = text;
  }
  return read;
}

function writeState() {
  const changed = Object.keys(DEFAULTS).filter((name) => String(state[name]) !== String(DEFAULTS[name]));
  const chosen = new URLSearchParams(changed.map((name) => [name, state[name] === true ? "1" : state[name]]));
  history.replaceState(history.state, "", `#${chosen}`);
}

const listeners = []; // called with the changes: they show the state and redraw

// Draw now, and again after every change.
function live(draw) {
  listeners.push(draw);
  draw({});
}

function choose(changes) {
  Object.assign(state, changes);
  writeState();
  for (const listener of listeners) listener(changes);
}

window.addEventListener("hashchange", () => {
  state = readState();
  for (const listener of listeners) listener(state);
});

// Add an entry to a list of the state, or remove it.
function toggled(list, entry) {
  return list.includes(entry) ? list.filter((other) => other !== entry) : [...list, entry];
}

// ---- controls: each shows one entry of the state and changes it

function chosenOf(name, options) {
  const names = options.map(([value]) => value);
  return names.includes(state[name]) ? state[name] : names[0];
}

function choice(label, name, options) {
  const select = el("select", { id: `choose-${name}`, onchange: () => choose({ [name]: select.value }) });
  for (const [value, text] of options) select.append(el("option", { value }, visible(text, 60)));
  live(() => (select.value = chosenOf(name, options)));
  return el("span", { class: "control" }, el("label", { for: select.id }, label), select);
}

function checkbox(label, name) {
  const input = el("input", { type: "checkbox", onchange: () => choose({ [name]: input.checked }) });
  live(() => (input.checked = state[name]));
  return el("label", { class: "control" }, input, label);
}

// A field of text or a slider; the page follows when the reader pauses.
function field(label, name, properties) {
  let waiting = 0;
  const read = () => (typeof DEFAULTS[name] === "number" ? Number(input.value) : input.value);
  const input = el("input", {
    ...properties,
    oninput: () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => choose({ [name]: read() }), 150);
    },
  });
  live(() => document.activeElement === input || (input.value = state[name]));
  return el("label", { class: "control" }, label, input);
}

function section(id, title, ...children) {
  if (title === null) return el("section", { id }, ...children);
  const heading = el("h2", { id: `${id}-title` }, title);
  return el("section", { id, "aria-labelledby": heading.id }, heading, ...children);
}

const controls = (...children) => el("div", { class: "controls" }, ...children);
const paragraph = (text, look = null) => el("p", { class: look }, named(text, 2000));
const note = (text) => paragraph(text, "soft");

// A table of texts: the first cell of each row is its header. `head`: the header of the columns.
function tableOf(rows, head = null) {
  const cell = (text) => (text instanceof Node ? text : named(text, 80));
  const line = ([title, ...texts]) =>
    el("tr", {}, el("th", { scope: "row" }, cell(title)), ...texts.map((text) => el("td", {}, cell(text))));
  const titles = head?.map((text) => el("th", { scope: "col" }, cell(text)));
  return el("table", {}, titles ? el("thead", {}, el("tr", {}, ...titles)) : null, el("tbody", {}, ...rows.map(line)));
}

// ---- the answer

function answerSection() {
  const { sentences = [], command } = report.answer ?? {};
  const why = measure.why ? ` (${measure.why})` : "";
  const parts = [
    note(counts()),
    report.question && note(report.question),
    ...sentences.map((text, n) => paragraph(text, n === 0 ? "lead" : null)),
    report.verdict && paragraph(verdictSentence(report.verdict)),
    command && note("To train the best run twice as long:"),
    command && commandLine(command),
    note(
      `Measure: ${measure.name} in ${measure.unit}${why}. ± and intervals are 95 % confidence intervals of a mean or a `
        + "difference. Runs that differ only in their seed are one point; n is their number.",
    ),
    ...(extra.notes ?? []).map(note),
  ];
  return section("answer", null, ...parts.filter(Boolean));
}

function counts() {
  const states = Object.entries(report.counts ?? {}).map(([name, n]) => `${n} ${name}`).join(", ");
  const made = report.made ? ` · ${report.made.slice(0, 16).replace("T", " ")} UTC` : "";
  const refreshed = report.is_running ? " · still running, refreshed every 15 seconds" : "";
  return `${plural(runs.length, "run")}: ${states}${made}${refreshed}`;
}

function verdictSentence(verdict) {
  const [name, other] = [label(points[verdict.point]), label(points[verdict.with])];
  return `${name} compared with ${other}: ${comparison(verdict)}.`;
}

const label = (point) => (point ? point.label || "the only settings" : "unknown settings");

function comparison(result) {
  const range = isNumber(result.low) ? ` [${loss(result.low)}, ${loss(result.high)}]` : "";
  return `${result.verdict}, difference ${loss(result.difference)}${range}${certainty(result)}`;
}

function certainty({ p_adjusted, more_seeds }) {
  const more = more_seeds ? `; about ${plural(more_seeds, "more seed")} would tell` : "";
  return (isNumber(p_adjusted) ? `, ${probability(p_adjusted)}` : "") + more;
}

function commandLine(command) {
  const text = el("code", {}, visible(command));
  const copy = () => {
    getSelection().selectAllChildren(text); // the reader can press Ctrl-C if the browser refuses
    button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
  };
  const button = el("button", { class: "copy", type: "button", onclick: copy }, "Copy");
  return el("div", { class: "command" }, text, button);
}
