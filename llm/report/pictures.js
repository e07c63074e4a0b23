// ---- parallel coordinates: a line per point crosses an axis per key

const MOST_LINES = 400;
const variedKeys = keys.filter((key) => distinct(points.map((point) => point.values[key])).length > 1);
const measuredPoints = () => shownPoints().filter((point) => isNumber(point.mean));

function parallelSection() {
  if (!variedKeys.length || points.length < 3) return null;
  return section(
    "parallel",
    "All settings at once",
    note(`A line is a point; its colour is its ${measure.name}, where dark means low.`),
    picture(380, drawParallel),
  );
}

function drawParallel() {
  const shown = measuredPoints().sort((a, b) => b.mean - a.mean).slice(-MOST_LINES);
  const varied = variedKeys.slice(0, 9);
  const axes = [
    ...varied.map((key) => placed(short(key), shown.map((point) => point.values[key]))),
    placed("parameters", shown.map((point) => point.parameters), count),
    placed(measure.name, shown.map((point) => point.mean), (value) => value.toFixed(3)),
  ];
  const colours = scaleOf(shown.map((point) => point.mean));
  const places = axes.map((_, at) => at);
  const traces = shown.map((point, n) =>
    lines(places, axes.map(({ shares }) => shares[n]), {
      color: scaled(colours(point.mean)),
      width: point.index === best ? 4 : 1.5,
    }, {
      opacity: 0.85,
      hoverinfo: "all",
      hovertemplate: `<b>${escaped(label(point), 200)}</b><br>${loss(point.mean)} (n ${point.n})<extra></extra>`,
    }),
  );
  const { paper, soft } = theme();
  const last = axes.length - 1;
  const ticks = axes.flatMap(({ ticks }, x) =>
    ticks.map(([y, text]) => ({
      x,
      y,
      text: escaped(text, 16),
      showarrow: false,
      bgcolor: paper,
      borderpad: 1,
      xanchor: x === last ? "right" : "left",
      xshift: x === last ? -5 : 5,
      font: { size: 11, color: soft },
    })),
  );
  const titles = axes.map(({ title }, x) => ({
    x,
    y: narrow.matches && x % 2 ? 1.22 : 1.12,
    text: escaped(title, narrow.matches ? 20 : 24),
    showarrow: false,
    font: { size: 13 },
    xanchor: x === 0 ? "left" : x === last ? "right" : "center",
  }));
  const bare = { showticklabels: false, fixedrange: true, showline: false };
  return {
    traces,
    text: `${plural(shown.length, "point")} over ${varied.map(short).join(", ")}, parameters and ${measure.name}`,
    layout: {
      annotations: [...titles, ...ticks],
      hoverdistance: 30,
      margin: { l: 20, r: 20, t: 10, b: 10 },
      xaxis: axis("", { ...bare, range: [-0.004, last + 0.004], tickvals: places, gridcolor: soft }),
      yaxis: axis("", { ...bare, range: [-0.05, 1.28], showgrid: false }),
    },
  };
}

// Where values lie on an axis from 0 to 1, and its ticks: numbers by size, words in their order.
function placed(title, values, text = String) {
  const found = distinct(values.filter((value) => !isUnknown(value)));
  const areNumbers = found.every((value) => asNumber(value) !== null);
  const number = (value) => (areNumbers ? asNumber(value) : found.indexOf(value));
  const scale = scaleOf(found.map(number));
  const share = (value) => scale(number(value));
  const ticks = [];
  for (const value of found) {
    const isFree = !ticks.length || share(value) - ticks.at(-1)[0] > 0.06;
    if (isFree) ticks.push([share(value), text(value)]);
  }
  return { title, ticks, shares: values.map((value) => (isUnknown(value) ? null : share(value))) };
}

// A function from a value to its place between 0 and 1 in the range of all values: logarithmic
// where they span more than a factor of 20.
function scaleOf(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const bend = low > 0 && high / low > 20 ? Math.log10 : (value) => value;
  const span = bend(high) - bend(low);
  return (value) => (span > 0 ? (bend(value) - bend(low)) / span : 0.5);
}

// ---- heat map over two keys

function heatSection() {
  if (variedKeys.length < 2) return null;
  const options = (first) => [first, ...variedKeys.filter((key) => key !== first)].map((key) => [key, short(key)]);
  const [across, down] = [options(variedKeys[0]), options(variedKeys[1])];
  const most = Math.max(...variedKeys.map((key) => distinct(points.map((point) => point.values[key])).length));
  const height = Math.min(Math.max(360, 100 + 44 * most), 800);
  return section(
    "heat",
    "Two settings",
    note(`Mean ${measure.name} of all points with these two values; their other settings may differ. n counts runs.`),
    controls(choice("Across", "heatx", across), choice("Down", "heaty", down)),
    picture(height, () => drawHeat(chosenOf("heatx", across), chosenOf("heaty", down))),
  );
}

function drawHeat(across, down) {
  const shown = measuredPoints();
  const columns = distinct(shown.map((point) => point.values[across]));
  const rows = distinct(shown.map((point) => point.values[down]));
  const total = (own, name) => own.reduce((sum, point) => sum + point[name], 0);
  const cells = rows.map((row) =>
    columns.map((column) => {
      const own = shown.filter((point) => point.values[across] === column && point.values[down] === row);
      return own.length ? { mean: total(own, "mean") / own.length, n: total(own, "n") } : null;
    }),
  );
  const isSmall = columns.length * rows.length <= 80 && !(narrow.matches && columns.length > 5);
  const ticks = (values) => ({
    tickvals: values.map((_, n) => n),
    ticktext: values.map((value) => escaped(value ?? "unknown", 24)),
    showgrid: false,
  });
  const heat = {
    type: "heatmap",
    z: cells.map((row) => row.map((cell) => cell && cell.mean)),
    colorscale: colorscale(),
    xgap: 2,
    ygap: 2,
    colorbar: { thickness: 10, outlinewidth: 0 },
    text: cells.map((row) => row.map((cell) => (cell ? `${cell.mean.toFixed(3)}<br>n ${cell.n}` : ""))),
    texttemplate: isSmall ? "%{text}" : "",
    hovertemplate: "%{text}<extra></extra>",
    hoverongaps: false,
  };
  return {
    traces: [heat],
    text: `Mean ${measure.name} by ${short(across)} and ${short(down)} of ${plural(shown.length, "point")}`,
    layout: {
      xaxis: axis(short(across), ticks(columns)),
      yaxis: axis(short(down), { ...ticks(rows), autorange: "reversed" }),
      uirevision: across + down,
    },
  };
}

// ---- the measure against its cost, with the Pareto front and the scaling law

const COSTS = [
  ["parameters", "parameters", count],
  ["peak_memory_bytes", "memory", bytes],
  ["train_seconds", "time of training", duration],
];
const law = report.scaling?.points ? report.scaling : null;

function costSection() {
  const known = COSTS.filter(([name]) => distinct(points.map((point) => point[name]).filter(isNumber)).length > 1);
  if (!known.length) return null;
  return section(
    "cost",
    "Loss and its cost",
    note("Bars show the 95 % interval. The line joins the points that no other point beats in both."),
    controls(choice("Against", "against", known), checkbox("log axis", "logs")),
    picture(400, () => drawCost(known)),
  );
}

function drawCost(known) {
  const cost = chosenOf("against", known);
  const [, title, text] = known.find(([name]) => name === cost);
  const shown = measuredPoints().filter((point) => isNumber(point[cost]));
  const front = shown.filter((point) => point.front?.includes(cost)).sort((a, b) => a[cost] - b[cost]);
  const unit = cost === "peak_memory_bytes" ? 2 ** 20 : 1;
  const x = (some) => some.map((point) => point[cost] / unit);
  const y = (some) => some.map((point) => point.mean);
  const half = (point) => (isNumber(point.high) && isNumber(point.low) ? (point.high - point.low) / 2 : 0);
  const words = (point) =>
    `<b>${escaped(label(point), 200)}</b><br>${loss(point.mean)} ± ${loss(half(point))} (n ${point.n})<br>`
    + text(point[cost]);
  const { ink, soft, main, accent } = theme();
  const marker = {
    size: shown.map((point) => (point.index === best ? 13 : 9)),
    line: { color: ink, width: 0.5 },
    symbol: shown.map((point) => (point.index === best ? "star" : front.includes(point) ? "diamond" : "circle")),
    color: shown.map((point) => (front.includes(point) ? accent : main)),
  };
  const bars = { error_y: { type: "data", array: shown.map(half), thickness: 1, width: 3, color: soft } };
  const names = front.slice(0, 5).map(label).join("; ");
  return {
    traces: [
      ...(law && cost === "parameters" ? [lawLine()] : []),
      lines(x(front), y(front), { color: accent, width: 1.5, dash: "dot" }),
      dots(x(shown), y(shown), marker, shown.map(words), bars),
    ],
    text:
      `${measure.name} of ${plural(shown.length, "point")} against ${title}; `
      + `${front.length} on the front: ${names}`,
    layout: {
      xaxis: axis(unit === 1 ? title : `${title} (MiB)`, { type: state.logs ? "log" : "linear" }),
      yaxis: measureAxis(),
      uirevision: cost + state.logs,
    },
  };
}

function lawLine() {
  const sizes = law.points.map(([size]) => size);
  const [low, high] = [Math.min(...sizes), Math.max(...sizes)];
  const x = Array.from({ length: 50 }, (_, n) => low * (high / low) ** (n / 49));
  const y = x.map((size) => law.e + law.a * size ** -law.alpha);
  return lines(x, y, { color: theme().soft, width: 2 });
}

function scalingSection() {
  if (!report.scaling) return null;
  const words = law ? `${law.sentence} The grey line above, against parameters, is this law.` : report.scaling.why_not;
  return section("scaling", "Scaling law", paragraph(law ? words : `No law is fitted: ${words}.`));
}

// ---- importance of the settings

function importanceSection() {
  const rows = (report.importance ?? []).filter(({ correlation, share }) => isNumber(correlation) || isNumber(share));
  if (!rows.length) return null;
  const strength = ({ correlation, share }) => share ?? Math.abs(correlation);
  rows.sort((a, b) => strength(a) - strength(b));
  const bars = (title, values, color) => ({
    type: "bar",
    orientation: "h",
    y: rows.map(({ key, n }) => `${escaped(short(key), 30)} (n ${n})`),
    x: values,
    marker: { color },
    name: title,
    text: values.map((value) => (isNumber(value) ? value.toFixed(2) : "")),
    textposition: "outside",
    cliponaxis: false,
    hovertemplate: `${title} %{x:.3f}<extra>%{y}</extra>`,
  });
  const words = ({ key, correlation, share }) =>
    `${short(key)}: correlation ${loss(correlation)}, share ${loss(share)}`;
  return section(
    "importance",
    "Importance",
    note(
      `The rank correlation with the ${measure.name} lies between -1 and 1: below 0, larger values are better. `
        + "The share of variance is known for grids.",
    ),
    picture(90 + 52 * rows.length, () => ({
      traces: [
        bars("rank correlation", rows.map((row) => row.correlation), theme().main),
        bars("share of variance", rows.map((row) => row.share), theme().accent),
      ],
      text: rows.map(words).join("; "),
      layout: {
        showlegend: true,
        legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
        bargap: 0.35,
        xaxis: axis("", { range: [-1.12, 1.12], zeroline: true, zerolinecolor: theme().soft }),
        yaxis: axis("", { type: "category" }),
        margin: { l: 56, r: 16, t: 34, b: 30 },
      },
    })),
  );
}

// ---- memory, predicted and measured

const MOST_DOTS = 2000;

function memorySection() {
  const known = runs.filter((run) => isNumber(run.peak_memory_bytes) && isNumber(run.predicted_memory_bytes));
  if (!known.length) return null;
  const errors = known.map((run) => run.predicted_memory_bytes / run.peak_memory_bytes - 1);
  const budgets = distinct(known.map((run) => run.budget_bytes).filter(isNumber));
  const percent = (value) => `${Math.abs(100 * value).toFixed(0)} % ${value < 0 ? "below" : "above"}`;
  const [low, high] = [Math.min(...errors), Math.max(...errors)].map(percent);
  const most = bytes(Math.max(...known.map((run) => run.peak_memory_bytes)));
  const limit = budgets.length ? ` of a budget of ${budgets.map(bytes).join(" or ")}` : "";
  const words =
    `The predicted peaks are ${low === high ? low : `between ${low} and ${high}`} the measured ones. `
    + `The highest measured peak is ${most}${limit}.`;
  const shown = known.slice(0, MOST_DOTS);
  return section("memory", "Memory", paragraph(words), picture(360, () => drawMemory(shown, budgets, words)));
}

function drawMemory(known, budgets, text) {
  const mib = (values) => values.map((value) => value / 2 ** 20);
  const [predicted, measured] = ["predicted_memory_bytes", "peak_memory_bytes"].map((name) =>
    mib(known.map((run) => run[name])),
  );
  const all = [...predicted, ...measured];
  const ends = [Math.min(...all) * 0.95, Math.max(...all) * 1.05];
  const near = mib(budgets).filter((budget) => budget < ends[1] * 4);
  const { soft, main, accent } = theme();
  const words = (run) =>
    `<b>${escaped(run.name, 120)}</b><br>predicted ${bytes(run.predicted_memory_bytes)}`
    + `<br>measured ${bytes(run.peak_memory_bytes)}`;
  const limit = { mode: "lines+text", text: ["", "budget"], textposition: "top left", textfont: { color: accent } };
  return {
    traces: [
      lines(ends, ends, { color: soft, width: 1, dash: "dot" }),
      ...near.map((budget) => lines(ends, [budget, budget], { color: accent, width: 1.5, dash: "dash" }, limit)),
      dots(predicted, measured, { size: 8, color: main, opacity: 0.8 }, known.map(words)),
    ],
    text,
    layout: { xaxis: axis("predicted (MiB)"), yaxis: axis("measured (MiB)") },
  };
}
