// ---- the table of points and runs. The pictures show the same points and runs.

const FIRST_ROWS = 200;

// A row is a point, or a run with its point, which is null if the run is not compared.
const pointRows = points.map((point) => ({ id: `p${point.index}`, point, run: null }));
const runRows = runs.map((run, n) => ({ id: `r${n}`, n, run, point: points[run.point] ?? null }));
const againstBest = new Map((report.comparisons ?? []).map((result) => [result.point, result]));

function settingOf(row, key) {
  return row.point?.values?.[key] ?? row.run?.changes?.[key] ?? null;
}

function verdictOf(row) {
  if (row.point.index === best) return "best";
  const result = againstBest.get(row.point.index);
  return result ? result.verdict + certainty(result) : null;
}

function measuredText(value, row) {
  const { low, high } = row.run ? {} : row.point;
  return isNumber(low) && isNumber(high) ? `${loss(value)} ± ${loss((high - low) / 2)}` : loss(value);
}

const testOf = ({ run, point }) => (run ? run.test?.loss : point.test_mean);

// eval/loss, eval/grammar: the results of run_eval.py
const scoreNames = [...new Set(runs.flatMap((run) => Object.keys(run.scores ?? {})))];

// rows: whether the column belongs to points, to runs, or to both; text: how a value is shown.
// both(): a number that points and runs have under these two names.
function both(id, title, ofPoint, ofRun, text) {
  return { id, title, number: true, text, value: (row) => (row.run ? row.run[ofRun] : row.point[ofPoint]) };
}

const COLUMNS = [
  { id: "name", title: "run", rows: "runs", value: (row) => row.run.name },
  ...keys.map((key) => ({ id: key, title: short(key), value: (row) => settingOf(row, key) })),
  { id: "status", title: "state", rows: "runs", value: (row) => row.run.status },
  { id: "seed", title: "seed", rows: "runs", number: true, value: (row) => row.run.seed },
  { id: "n", title: "n", rows: "points", number: true, value: (row) => row.point.n },
  both("measure", measure.name, "mean", measure.key, measuredText),
  { id: "sd", title: "sd", rows: "points", number: true, value: (row) => row.point.sd, text: loss },
  { id: "verdict", title: "against the best", rows: "points", wide: true, value: verdictOf },
  both("last", "last loss", "last_mean", "val_loss", loss),
  both("bits_per_byte", "bits per byte", "bits_per_byte", "bits_per_byte", loss),
  { id: "test", title: "test loss", number: true, value: testOf, text: loss },
  ...scoreNames.map((name) => ({ id: name, title: name, number: true, text: loss, value: (row) => (row.run ?? row.point).scores?.[name] })),
  both("parameters", "parameters", "parameters", "parameters", count),
  both("memory", "memory", "peak_memory_bytes", "peak_memory_bytes", bytes),
  both("time", "time", "train_seconds", "train_seconds", duration),
  both("tokens_per_second", "tokens/s", "tokens_per_second", "tokens_per_second", count),
  { id: "step", title: "step", rows: "runs", number: true, value: (row) => row.run.step },
  { id: "note", title: "note", rows: "runs", value: (row) => row.run.note },
  { id: "folder", title: "folder", rows: "runs", value: (row) => row.run.folder },
];
const HIDDEN_COLUMNS = ["last", "bits_per_byte", "test", "step", "note", "folder", ...keys.slice(6)];
const USUAL = COLUMNS.map((column) => column.id).filter((id) => !HIDDEN_COLUMNS.includes(id));

// A run has no value in a column of points: below its point it shows its seed and its state there.
function cellText(column, row) {
  if (row.run && column.rows === "points") {
    return { n: `seed ${row.run.seed ?? "?"}`, verdict: row.run.status }[column.id] ?? "";
  }
  const value = column.value(row);
  if (column.text) return column.text(value, row);
  return isUnknown(value) ? DASH : String(value);
}

// ---- the filter: words such as n_layer>4 or lr=0.01 compare values, other words are searched for

const OPERATORS = {
  "=": (order) => order === 0,
  "!=": (order) => order !== 0,
  "<": (order) => order < 0,
  ">": (order) => order > 0,
  "<=": (order) => order <= 0,
  ">=": (order) => order >= 0,
};

function columnNamed(name) {
  const wanted = name.toLowerCase();
  return (
    COLUMNS.find((column) => column.id.toLowerCase() === wanted)
    ?? COLUMNS.find((column) => column.id.toLowerCase().endsWith(`.${wanted}`))
    ?? COLUMNS.find((column) => column.title.toLowerCase() === wanted)
  );
}

function conditionOf(word) {
  const parts = /^([^<>=!]+)(<=|>=|!=|=|<|>)(.+)$/.exec(word);
  const column = parts && columnNamed(parts[1]);
  if (!column) return (row) => searched(row).includes(word.toLowerCase());
  return (row) => {
    if (column.rows && column.rows !== (row.run ? "runs" : "points")) return true;
    const value = column.value(row);
    return !isUnknown(value) && OPERATORS[parts[2]](compare(value, parts[3]));
  };
}

function searched(row) {
  const { run, point } = row;
  const texts = [point?.label, run?.name, run?.note, run?.status, run?.reason, run?.folder];
  return texts.filter(Boolean).join(" ").toLowerCase();
}

function filtered(rows) {
  const conditions = state.filter.split(/\s+/).filter(Boolean).map(conditionOf);
  return rows.filter((row) => conditions.every((holds) => holds(row)));
}

// Runs that did not finish are shown only if the reader asks for them.
const isFailed = (run) => !["finished", "running", "waiting"].includes(run.status);
const STATES = [
  ["", "finished and running"],
  ["all", "all"],
  ...Object.entries(report.counts ?? {}).map(([name, n]) => [name, `${name} (${n})`]),
];

function isShown({ run }) {
  const chosen = chosenOf("state", STATES);
  return chosen === "" ? !isFailed(run) : chosen === "all" || run.status === chosen;
}

const shownPoints = () => filtered(pointRows).map((row) => row.point);
const shownRuns = () => filtered(runRows).filter(isShown);

// ---- drawing it

const ROWS = [["points", "points (seeds together)"], ["runs", "runs"]];

function tableSection() {
  const box = el("div", { class: "scroll results", tabindex: "0", role: "region", "aria-label": "Table of results" });
  const below = el("p", { class: "soft", "aria-live": "polite" });
  live(() => drawTable(box, below));
  return section(
    "table",
    "Results",
    controls(
      choice("Rows", "rows", ROWS),
      field("Filter", "filter", { type: "search", placeholder: "n_layer>4 lr=0.01 or a word" }),
      choice("State of runs", "state", STATES),
      columnChoice(),
    ),
    box,
    below,
  );
}

function columnChoice() {
  const options = el("div", { class: "options" });
  const option = (column) => {
    const show = () => choose({ columns: toggled(state.columns.length ? state.columns : USUAL, column.id) });
    const input = el("input", { type: "checkbox", checked: isVisible(column), onchange: show });
    return el("label", { class: "control" }, input, named(keys.includes(column.id) ? column.id : column.title, 60));
  };
  live(() => options.replaceChildren(...COLUMNS.map(option)));
  return foldable("columns", "Columns", options);
}

const isVisible = (column) => (state.columns.length ? state.columns : USUAL).includes(column.id);

// Details that stay open when the page refreshes itself.
function foldable(id, title, ...children) {
  const details = el("details", { id, open: state.open.includes(id) }, el("summary", {}, title), ...children);
  details.addEventListener("toggle", () => {
    const isChanged = details.open !== state.open.includes(id);
    if (isChanged && !printed.matches) choose({ open: toggled(state.open, id) });
  });
  return details;
}

function drawTable(box, below) {
  const kind = chosenOf("rows", ROWS);
  const columns = COLUMNS.filter((column) => isVisible(column) && (column.rows ?? kind) === kind);
  const rows = sorted(kind === "points" ? filtered(pointRows) : shownRuns());
  const first = state.all ? rows : rows.slice(0, FIRST_ROWS);
  const body = el("tbody");
  for (const row of first) {
    body.append(rowOf(row, columns));
    if (!row.run && state.open.includes(row.id)) {
      body.append(...row.point.runs.map((n) => rowOf(runRows[n], columns, "run")));
    }
  }
  const head = el("tr", {}, el("td", { class: "tools" }), ...columns.map(headerOf));
  const keyboard = document.activeElement?.dataset?.control; // of the button that was just used
  box.replaceChildren(el("table", {}, el("thead", {}, head), body));
  if (keyboard) box.querySelector(`[data-control="${CSS.escape(keyboard)}"]`)?.focus();
  const all = kind === "points" ? points.length : runs.length;
  below.replaceChildren(`${plural(rows.length, kind.slice(0, -1))} of ${all.toLocaleString("en")}`);
  if (first.length < rows.length) {
    const show = { type: "button", class: "more", onclick: () => choose({ all: true }) };
    const button = el("button", show, `Show all ${rows.length.toLocaleString("en")}`);
    below.append(`, the first ${FIRST_ROWS} are shown. `, button);
  }
}

// Rows with an unknown value come last in both directions.
function sorted(rows) {
  const column = COLUMNS.find(({ id }) => id === state.sort) ?? COLUMNS.find(({ id }) => id === "measure");
  const usable = rows.length && (!column.rows || column.rows === (rows[0].run ? "runs" : "points"));
  if (!usable) return rows;
  const valued = rows.map((row) => [column.value(row), row]);
  const known = valued.filter(([value]) => !isUnknown(value)).sort(([a], [b]) => compare(a, b));
  if (state.down) known.reverse();
  return [...known, ...valued.filter(([value]) => isUnknown(value))].map(([, row]) => row);
}

function headerOf(column) {
  const isSorted = state.sort === column.id;
  const direction = isSorted ? (state.down ? "descending" : "ascending") : "none";
  const arrow = { descending: " ↓", ascending: " ↑", none: "" }[direction];
  const onclick = () => choose({ sort: column.id, down: isSorted && !state.down });
  const button = { type: "button", onclick, "data-control": `sort ${column.id}` };
  return el(
    "th",
    { scope: "col", class: column.number ? "number" : null, "aria-sort": direction },
    el("button", button, named(column.title, 40), arrow),
  );
}

function rowOf(row, columns, look = null) {
  const isBest = !row.run && row.point.index === best;
  const tools = el("td", { class: "tools" }, row.run ? null : openerOf(row));
  const cells = columns.map((column) => {
    const text = cellText(column, row);
    const place = { class: column.number ? "number" : column.wide ? "wide" : null };
    return el("td", place, text.length > 40 ? named(text, 160) : visible(text));
  });
  return el("tr", { class: isBest ? "best" : look }, tools, ...cells);
}

// A button that lists the runs of a point.
function openerOf(row) {
  const isOpen = state.open.includes(row.id);
  const properties = {
    type: "button",
    onclick: () => choose({ open: toggled(state.open, row.id) }),
    "aria-label": `Runs of ${visible(label(row.point), 80)}`,
    "aria-expanded": String(isOpen),
    "data-control": `open ${row.id}`,
  };
  return el("button", properties, isOpen ? "−" : "+");
}
