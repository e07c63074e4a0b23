// ---- curves of the loss. Up to two runs are picked, to show in which settings they differ.

const AXES = { step: "step", tokens: "tokens", seconds: "seconds of training", flops: "FLOPs" };
const KINDS = { val: "validation loss", train: "training loss" };
const curvesOf = new Map((extra.curves ?? []).map((curve) => [curve.run, curve]));
const hasNumbers = (values) => Boolean(values?.some(isNumber));

const isPicked = (n) => state.picked.includes(String(n));
const pick = (n) => choose({ picked: toggled(state.picked, String(n)).slice(-2) });

function curvesSection() {
  const curves = [...curvesOf.values()];
  const kinds = Object.entries(KINDS).filter(([kind]) => curves.some((curve) => hasNumbers(curve[kind]?.loss)));
  if (!kinds.length) return null;
  const has = (x) => curves.some((curve) => kinds.some(([kind]) => hasNumbers(curve[kind]?.[x])));
  const axes = Object.entries(AXES).filter(([x]) => has(x));
  const legend = el("ul", { class: "legend", "aria-label": "Curves" });
  const difference = el("aside", { "aria-live": "polite" });
  const frame = picture(
    430,
    () => drawCurves(chosenOf("loss", kinds), chosenOf("x", axes), legend),
    (event) => pick(event.points[0].data.meta),
  );
  live(() => difference.replaceChildren(...differenceOf()));
  return section(
    "curves",
    "Curves",
    controls(
      choice("Loss", "loss", kinds),
      choice("Over", "x", axes),
      checkbox("log x", "logx"),
      checkbox("log loss", "logy"),
      field("Smoothing", "smooth", { type: "range", min: 0, max: 0.95, step: 0.05 }),
    ),
    el("div", { class: "beside" }, el("div", {}, frame, legend), difference),
    note("The first losses lie above the picture: a double click shows them, another one hides them."),
  );
}

function drawCurves(kind, x, legend) {
  const rows = sorted(shownRuns().filter(({ n }) => hasNumbers(curvesOf.get(n)?.[kind]?.loss)));
  legend.replaceChildren(...legendOf(rows));
  const lowest = rows.reduce((least, { run }) => Math.min(least, run[measure.key] ?? Infinity), Infinity);
  return {
    traces: rows.map((row) => curve(row, kind, x)),
    text:
      `${KINDS[kind]} of ${plural(rows.length, "run")} by ${AXES[x]}; `
      + `the lowest ${measure.name} is ${loss(lowest)}`,
    layout: {
      xaxis: axis(AXES[x], { type: state.logx ? "log" : "linear" }),
      yaxis: axis(`${KINDS[kind]} (nats per token)`, {
        type: state.logy ? "log" : "linear",
        range: laterLosses(rows, kind, state.logy),
      }),
      uirevision: [kind, x, state.logx, state.logy].join(),
    },
  };
}

// The range of all losses but the first fifth of each curve, which would flatten the differences.
function laterLosses(rows, kind, isLog) {
  const later = rows.flatMap(({ n }) => {
    const losses = curvesOf.get(n)[kind].loss;
    return losses.slice(Math.max(1, Math.floor(losses.length / 5))).filter(isNumber);
  });
  if (!later.length) return undefined;
  const ends = [later.reduce((a, b) => Math.min(a, b)), later.reduce((a, b) => Math.max(a, b))];
  const [low, high] = isLog ? ends.map(Math.log10) : ends;
  const room = 0.05 * (high - low) || 0.05;
  return [low - room, high + room];
}

function curve(row, kind, x) {
  const values = curvesOf.get(row.n)[kind];
  const { color, dash } = styleOf(row);
  const few = values.loss.length <= 40;
  const faded = state.picked.length > 0 && !isPicked(row.n);
  const name = escaped(row.point ? label(row.point) : row.run.name, 200);
  return {
    type: "scatter",
    mode: few ? "lines+markers" : "lines",
    meta: row.n,
    x: values[x] ?? [],
    y: smoothed(values.loss, state.smooth),
    line: { color, dash, width: isPicked(row.n) ? 3.5 : 1.6 },
    marker: { size: few ? 4 : 0, color },
    opacity: faded ? 0.25 : row.run.status === "finished" ? 1 : 0.6,
    hovertemplate:
      `<b>${name}</b><br>seed ${escaped(row.run.seed ?? "?")}, ${escaped(row.run.status)}`
      + `<br>${x} %{x:,.6~g}<br>loss %{y:.4f}<extra></extra>`,
  };
}

// An exponential mean over the rows, which starts without a bias towards zero.
function smoothed(values, weight) {
  if (!weight) return values;
  let mean = 0;
  let total = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return mean / total;
  });
}

// The points with the lowest means have colours and dashes of their own; the other curves are grey.
const ranks = new Map([...points].sort((a, b) => a.mean - b.mean).map((point, rank) => [point, rank]));
const DASHES = { solid: "solid", dash: "dashed", dot: "dotted" }; // Plotly's names and those of CSS
const MOST_NAMES = ON_LIGHT.length * Object.keys(DASHES).length;

function styleOf({ point }) {
  const { distinct: colours, soft } = theme();
  const rank = point ? ranks.get(point) : MOST_NAMES;
  if (rank >= MOST_NAMES) return { color: soft, dash: "dot" };
  return { color: colours[rank % colours.length], dash: Object.keys(DASHES)[Math.floor(rank / colours.length)] };
}

// The legend is a list of buttons, so that curves can be picked with the keyboard, too.
function legendOf(rows) {
  const firsts = new Map();
  for (const row of rows) if (!firsts.has(row.point ?? row)) firsts.set(row.point ?? row, row);
  return [...firsts.values()].slice(0, MOST_NAMES).map((row) => {
    const { color, dash } = styleOf(row);
    const line = el("span", { class: "line", style: `border-top: 3px ${DASHES[dash]} ${color}` });
    const name = row.point ? `${label(row.point)} (n ${row.point.n})` : row.run.name;
    const button = { type: "button", "aria-pressed": String(isPicked(row.n)), onclick: () => pick(row.n) };
    return el("li", {}, el("button", button, line, named(name, 60)));
  });
}

// The settings of the picked runs that differ from the shared ones, and from each other.
function differenceOf() {
  const rows = state.picked.map((n) => runRows[Number(n)]).filter(Boolean);
  if (!rows.length) {
    const words = "Click on a curve to see in which settings it differs, and on a second one to compare the two.";
    return [paragraph(words, "soft hint")];
  }
  const value = (row, key) => row.run.changes?.[key] ?? row.point?.values?.[key] ?? report.shared?.[key];
  const changed = distinct(
    rows.flatMap(({ run, point }) => [...Object.keys(run.changes ?? {}), ...Object.keys(point?.values ?? {})]),
  );
  const differs = (key) => rows.length === 1 || String(value(rows[0], key)) !== String(value(rows[1], key));
  const line = (title, of) => [title, ...rows.map((row) => of(row) ?? DASH)];
  return [
    el("h3", {}, rows.length === 1 ? "Settings that are not shared" : "Settings that differ"),
    tableOf([
      ...changed.filter(differs).map((key) => line(short(key), (row) => value(row, key))),
      line("seed", ({ run }) => run.seed),
      line("state", ({ run }) => run.status),
      line(measure.name, ({ run }) => loss(run[measure.key])),
    ]),
    ...rows.map(({ run }) => note(run.folder)),
    el("button", { type: "button", onclick: () => choose({ picked: [] }) }, "Clear"),
  ];
}
