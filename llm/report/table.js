// ---- the table of points and runs. Its filter also decides what the pictures show.

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
  if (!result) return null;
  const chance = isNumber(result.p_adjusted) ? `, ${probability(result.p_adjusted)}` : "";
  const more = result.more_seeds ? `; ${plural(result.more_seeds, "more seed")}?` : "";
  return result.verdict + chance + more;
}

function measuredText(value, row) {
  const { low, high } = row.run ? {} : row.point;
  return isNumber(low) && isNumber(high) ? `${loss(value)} ± ${loss((high - low) / 2)}` : loss(value);
}

const testOf = ({ run, point }) => (run ? run.test?.loss : point.test_mean);

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
  return value === null || value === undefined ? DASH : String(value);
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
    if (value === null || value === undefined) return false;
    return OPERATORS[parts[2]](compare(value, parts[3]));
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

function isShown({ run }) {
  return state.state ? run.status === state.state : state.failed || !isFailed(run);
}

const shownPoints = () => filtered(pointRows).map((row) => row.point);
const shownRuns = () => filtered(runRows).filter(isShown);

// ---- drawing it

function tableSection() {
  const box = el("div", { class: "scroll results", tabindex: "0", role: "region", "aria-label": "Table of results" });
  const below = el("p", { class: "soft", "aria-live": "polite" });
  const draw = () => drawTable(box, below);
  listeners.push(draw);
  draw();
  const states = Object.entries(report.counts ?? {}).map(([name, n]) => [name, `${name} (${n})`]);
  return section(
    "table",
    "Results",
    el(
      "div",
      { class: "controls" },
      choice("Rows", "rows", [
        ["points", "points (seeds together)"],
        ["runs", "runs"],
      ]),
      field("Filter", "filter", { type: "search", placeholder: "n_layer>4 lr=0.01 or a word" }),
      choice("State of runs", "state", [["", "finished and running"], ...states]),
      checkbox("Show failed runs", "failed"),
      columnChoice(),
    ),
    box,
    below,
  );
}

function columnChoice() {
  const options = el("div", { class: "options" });
  const draw = () =>
    options.replaceChildren(
      ...COLUMNS.map((column) => {
        const input = el("input", {
          type: "checkbox",
          checked: isVisible(column),
          onchange: () => {
            const now = state.columns.length ? state.columns : USUAL;
            choose({ columns: toggled(now, column.id) });
          },
        });
        return el("label", { class: "control" }, input, named(keys.includes(column.id) ? column.id : column.title, 60));
      }),
    );
  listeners.push(draw);
  draw();
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
  const kind = chosenOf("rows", [["points"], ["runs"]]);
  const columns = COLUMNS.filter((c) => isVisible(c) && (c.rows ?? kind) === kind);
  const rows = sorted(kind === "points" ? filtered(pointRows) : shownRuns());
  const first = state.all ? rows : rows.slice(0, FIRST_ROWS);
  const body = el("tbody");
  for (const row of first) {
    body.append(rowOf(row, columns));
    if (!row.run && state.open.includes(row.id)) {
      const own = row.point.runs.map((n) => runRows[n]).filter(Boolean);
      body.append(...own.map((run) => rowOf(run, columns, "run")));
    }
  }
  const tools = el("td", { class: "tools" }); // its cells name themselves
  const head = el("tr", {}, tools, ...columns.map(headerOf));
  const keyboard = document.activeElement?.dataset?.control; // of the button that was just used
  box.replaceChildren(el("table", {}, el("thead", {}, head), body));
  if (keyboard) box.querySelector(`[data-control="${CSS.escape(keyboard)}"]`)?.focus();
  const all = kind === "points" ? points.length : runs.length;
  const words = `${plural(rows.length, kind.slice(0, -1))} of ${all.toLocaleString("en")}`;
  const button = el(
    "button",
    { type: "button", class: "more", onclick: () => choose({ all: true }) },
    `Show all ${rows.length.toLocaleString("en")}`,
  );
  below.replaceChildren(
    words,
    first.length < rows.length ? `, the first ${FIRST_ROWS} are shown. ` : ".",
    first.length < rows.length ? button : "",
  );
}

function sorted(rows) {
  const column = COLUMNS.find(({ id }) => id === state.sort) ?? COLUMNS.find(({ id }) => id === "measure");
  const usable = rows.length && (!column.rows || column.rows === (rows[0].run ? "runs" : "points"));
  if (!usable) return rows;
  const valued = rows.map((row) => [column.value(row), row]);
  const unknown = ([value]) => value === null || value === undefined;
  const known = valued.filter((pair) => !unknown(pair)).sort(([a], [b]) => compare(a, b));
  if (state.down) known.reverse();
  return [...known, ...valued.filter(unknown)].map(([, row]) => row);
}

function headerOf(column) {
  const isSorted = state.sort === column.id;
  const direction = state.down ? "descending" : "ascending";
  const arrow = isSorted ? (state.down ? " ↓" : " ↑") : "";
  const sort = () => choose({ sort: column.id, down: isSorted && !state.down });
  const button = el(
    "button",
    { type: "button", onclick: sort, "data-control": `sort ${column.id}` },
    named(column.title, 40),
    arrow,
  );
  return el(
    "th",
    { scope: "col", class: column.number ? "number" : null, "aria-sort": isSorted ? direction : "none" },
    button,
  );
}

function rowOf(row, columns, look = null) {
  const cells = columns.map((column) => {
    const text = cellText(column, row);
    const isLong = text.length > 40;
    return el(
      "td",
      { class: column.number ? "number" : column.wide ? "wide" : null },
      isLong ? named(text, 160) : visible(text),
    );
  });
  const isBest = !row.run && row.point.index === best;
  return el("tr", { class: isBest ? "best" : look }, toolsOf(row), ...cells);
}

// A box to compare the settings of this row, and for a point a button that lists its runs.
function toolsOf(row) {
  const n = row.run ? row.n : row.point.runs[0];
  const name = visible(row.run ? row.run.name : label(row.point), 80);
  const box = el("input", {
    type: "checkbox",
    checked: isPicked(n),
    onchange: () => pick(n),
    title: "Compare its settings",
    "aria-label": `Compare the settings of ${name}`,
    "data-control": `pick ${row.id}`,
  });
  if (row.run) return el("td", { class: "tools" }, box);
  const isOpen = state.open.includes(row.id);
  const button = el(
    "button",
    {
      type: "button",
      onclick: () => choose({ open: toggled(state.open, row.id) }),
      title: "Its runs",
      "aria-label": `Runs of ${name}`,
      "aria-expanded": String(isOpen),
      "data-control": `open ${row.id}`,
    },
    isOpen ? "−" : "+",
  );
  return el("td", { class: "tools" }, box, button);
}

// ---- up to two runs are picked, to show in which settings they differ

function isPicked(n) {
  return state.picked.includes(String(n));
}

function pick(n) {
  const others = toggled(state.picked, String(n));
  choose({ picked: others.slice(-2) });
}
