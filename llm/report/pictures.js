const MOST_LINES = 400; // of the parallel coordinates

// ---- parallel coordinates: a line per point crosses an axis per key

function parallelSection() {
  const varied = keys.filter((key) => distinct(points.map((point) => point.values[key])).length > 1).slice(0, 9);
  if (!varied.length || points.length < 3) return null;
  return section(
    "parallel",
    "All settings at once",
    note(`A line is a point; its colour is its ${measure.name}, where dark means low.`),
    el(
      "div",
      {},
      picture(380, () => drawParallel(varied)),
    ),
  );
}

function drawParallel(varied) {
  const shown = shownPoints()
    .filter((point) => isNumber(point.mean))
    .sort((a, b) => b.mean - a.mean)
    .slice(-MOST_LINES);
  const axes = [
    ...varied.map((key) =>
      placed(
        short(key),
        shown.map((point) => point.values[key]),
      ),
    ),
    placed(
      "parameters",
      shown.map((point) => point.parameters),
      count,
    ),
    placed(
      measure.name,
      shown.map((point) => point.mean),
      (value) => value.toFixed(3),
    ),
  ];
  const colours = scaleOf(shown.map((point) => point.mean));
  const traces = shown.map((point, n) => ({
    type: "scatter",
    mode: "lines",
    x: axes.map((_, at) => at),
    y: axes.map(({ shares }) => shares[n]),
    line: { color: scaled(colours.share(point.mean)), width: point.index === best ? 4 : 1.5 },
    opacity: 0.85,
    hovertemplate: `<b>${escaped(label(point), 200)}</b><br>${loss(point.mean)} (n ${point.n})<extra></extra>`,
  }));
  const { paper, soft } = theme();
  const side = (at) => (at === axes.length - 1 ? { xanchor: "right", xshift: -5 } : { xanchor: "left", xshift: 5 });
  const ticks = axes.flatMap(({ ticks: own }, at) =>
    own.map(([share, text]) => ({
      x: at,
      y: share,
      text: escaped(text, 16),
      showarrow: false,
      bgcolor: paper,
      borderpad: 1,
      ...side(at),
      font: { size: 11, color: soft },
    })),
  );
  const titles = axes.map(({ title }, at) => ({
    x: at,
    y: narrow.matches && at % 2 ? 1.22 : 1.12,
    text: escaped(title, narrow.matches ? 20 : 24),
    showarrow: false,
    font: { size: 13 },
    xanchor: at === 0 ? "left" : at === axes.length - 1 ? "right" : "center",
  }));
  return {
    traces,
    text: `${plural(shown.length, "point")} over ${varied.map(short).join(", ")}, parameters and ${measure.name}`,
    layout: {
      annotations: [...titles, ...ticks],
      hoverdistance: 30,
      margin: { l: 20, r: 20, t: 10, b: 10 },
      xaxis: axis("", {
        range: [-0.004, axes.length - 0.996],
        tickvals: axes.map((_, at) => at),
        showticklabels: false,
        fixedrange: true,
        gridcolor: soft,
        showline: false,
      }),
      yaxis: axis("", {
        showticklabels: false,
        showgrid: false,
        range: [-0.05, 1.28],
        fixedrange: true,
        showline: false,
      }),
    },
  };
}

// Where values lie on an axis from 0 to 1, and its ticks: numbers by size, words in their order.
function placed(title, values, text = String) {
  const found = distinct(values.filter((value) => value !== null && value !== undefined));
  const numbers = found.map(asNumber);
  const areNumbers = numbers.every((number) => number !== null);
  const scale = areNumbers ? scaleOf(numbers) : scaleOf(found.map((_, n) => n));
  const share = (value) => scale.share(areNumbers ? asNumber(value) : found.indexOf(value));
  const ticks = [];
  for (const value of found) {
    const isFree = !ticks.length || share(value) - ticks[ticks.length - 1][0] > 0.06;
    if (isFree) ticks.push([share(value), text(value)]);
  }
  return { title, ticks, shares: values.map((value) => (found.includes(value) ? share(value) : null)) };
}

// ---- heat map over two keys

function heatSection() {
  const varied = keys.filter((key) => distinct(points.map((point) => point.values[key])).length > 1);
  if (varied.length < 2) return null;
  const options = (first) => [first, ...varied.filter((key) => key !== first)].map((key) => [key, short(key)]);
  const [across, down] = [options(varied[0]), options(varied[1])];
  const most = Math.max(...varied.map((key) => distinct(points.map((point) => point.values[key])).length));
  const height = Math.min(Math.max(360, 100 + 44 * most), 800);
  return section(
    "heat",
    "Two settings",
    note(`Mean ${measure.name} of all points with these two values, whatever their other settings are; n counts runs.`),
    el("div", { class: "controls" }, choice("Across", "heatx", across), choice("Down", "heaty", down)),
    picture(height, () => drawHeat(chosenOf("heatx", across), chosenOf("heaty", down))),
  );
}

function drawHeat(across, down) {
  const shown = shownPoints().filter((point) => isNumber(point.mean));
  const columns = distinct(shown.map((point) => point.values[across]));
  const rows = distinct(shown.map((point) => point.values[down]));
  const cells = rows.map((row) =>
    columns.map((column) => {
      const own = shown.filter((point) => point.values[across] === column && point.values[down] === row);
      const total = own.reduce((sum, point) => sum + point.mean, 0);
      return { mean: own.length ? total / own.length : null, n: own.reduce((sum, point) => sum + point.n, 0) };
    }),
  );
  const small = columns.length * rows.length <= 80 && !(narrow.matches && columns.length > 5);
  const title = (value) => escaped(value ?? "unknown", 24);
  return {
    traces: [
      {
        type: "heatmap",
        x: columns.map((_, n) => n),
        y: rows.map((_, n) => n),
        z: cells.map((row) => row.map(({ mean }) => mean)),
        colorscale: colorscale(),
        xgap: 2,
        ygap: 2,
        colorbar: { thickness: 10, outlinewidth: 0 },
        text: cells.map((row) => row.map(({ mean, n }) => (mean === null ? "" : `${mean.toFixed(3)}<br>n ${n}`))),
        texttemplate: small ? "%{text}" : "",
        hovertemplate: "%{text}<extra></extra>",
        hoverongaps: false,
      },
    ],
    text: `Mean ${measure.name} by ${short(across)} and ${short(down)} of ${plural(shown.length, "point")}`,
    layout: {
      xaxis: axis(short(across), { tickvals: columns.map((_, n) => n), ticktext: columns.map(title), showgrid: false }),
      yaxis: axis(short(down), {
        tickvals: rows.map((_, n) => n),
        ticktext: rows.map(title),
        showgrid: false,
        autorange: "reversed",
      }),
      uirevision: across + down,
    },
  };
}

// ---- the measure against what it costs

const COSTS = [
  ["parameters", "parameters", count],
  ["peak_memory_bytes", "memory", bytes],
  ["train_seconds", "time of training", duration],
  ["tokens_per_second", "tokens per second", count],
];

function costSection() {
  const known = COSTS.filter(([name]) => points.some((point) => isNumber(point[name])));
  if (!known.length || points.length < 2) return null;
  return section(
    "cost",
    "Loss and its cost",
    note("Bars show the 95 % interval. The line joins the points that no other point beats in both."),
    el("div", { class: "controls" }, choice("Against", "against", known), checkbox("log axis", "logs")),
    picture(400, () => drawCost(known)),
  );
}

function drawCost(known) {
  const cost = chosenOf("against", known);
  const [, title, text] = known.find(([name]) => name === cost);
  const shown = shownPoints().filter((point) => isNumber(point.mean) && isNumber(point[cost]));
  const front = shown.filter((point) => point.front?.includes(cost)).sort((a, b) => a[cost] - b[cost]);
  const unit = cost === "peak_memory_bytes" ? 2 ** 20 : 1;
  const half = (point) => (isNumber(point.high) && isNumber(point.low) ? (point.high - point.low) / 2 : 0);
  const { ink, soft, main, accent } = theme();
  return {
    traces: [
      {
        type: "scatter",
        mode: "lines",
        x: front.map((point) => point[cost] / unit),
        y: front.map((point) => point.mean),
        line: { color: accent, width: 1.5, dash: "dot" },
        hoverinfo: "skip",
      },
      {
        type: "scatter",
        mode: "markers",
        x: shown.map((point) => point[cost] / unit),
        y: shown.map((point) => point.mean),
        error_y: { type: "data", array: shown.map(half), thickness: 1, width: 3, color: soft },
        marker: {
          size: shown.map((point) => (point.index === best ? 13 : 9)),
          line: { color: ink, width: 0.5 },
          symbol: shown.map((point) => (point.index === best ? "star" : front.includes(point) ? "diamond" : "circle")),
          color: shown.map((point) => (front.includes(point) ? accent : main)),
        },
        text: shown.map(
          (point) =>
            `<b>${escaped(label(point), 200)}</b><br>${loss(point.mean)} ± ${loss(half(point))}`
            + ` (n ${point.n})<br>${text(point[cost])}`,
        ),
        hovertemplate: "%{text}<extra></extra>",
      },
    ],
    text: `${measure.name} of ${plural(shown.length, "point")} against ${title}; ${front.length} on the front: ${front.slice(0, 5).map(label).join("; ")}`,
    layout: {
      xaxis: axis(unit === 1 ? title : `${title} (MiB)`, { type: state.logs ? "log" : "linear" }),
      yaxis: axis(`${measure.name} (${measure.unit})`),
      uirevision: cost + state.logs,
    },
  };
}

// ---- which settings matter

function importanceSection() {
  const rows = (report.importance ?? []).filter(({ correlation, share }) => isNumber(correlation) || isNumber(share));
  if (!rows.length) return null;
  const strength = ({ correlation, share }) => share ?? Math.abs(correlation);
  rows.sort((a, b) => strength(a) - strength(b));
  const names = rows.map(({ key, n }) => `${escaped(short(key), 30)} (n ${n})`);
  const bars = (title, values, color) => ({
    type: "bar",
    orientation: "h",
    y: names,
    x: values,
    marker: { color },
    name: title,
    text: values.map((value) => (isNumber(value) ? value.toFixed(2) : "")),
    textposition: "outside",
    cliponaxis: false,
    hovertemplate: `${title} %{x:.3f}<extra>%{y}</extra>`,
  });
  return section(
    "importance",
    "Which settings matter",
    note(
      `The rank correlation with the ${measure.name} lies between -1 and 1: below 0, larger values are better. `
        + "The share of variance is known for grids.",
    ),
    picture(90 + 52 * rows.length, () => ({
      traces: [
        bars(
          "rank correlation",
          rows.map((row) => row.correlation),
          theme().main,
        ),
        bars(
          "share of variance",
          rows.map((row) => row.share),
          theme().accent,
        ),
      ],
      text: rows
        .map(({ key, correlation, share }) => `${short(key)}: correlation ${loss(correlation)}, share ${loss(share)}`)
        .join("; "),
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

// ---- scaling law

function scalingSection() {
  const law = report.scaling;
  if (!law) return null;
  if (law.why_not)
    return section("scaling", "Scaling law", el("p", {}, named(`No law is fitted: ${law.why_not}.`, 1000)));
  return section(
    "scaling",
    "Scaling law",
    el("p", {}, named(law.sentence ?? "", 1000)),
    picture(360, () => drawScaling(law)),
  );
}

function drawScaling(law) {
  const sizes = law.points.map(([n]) => n);
  const [low, high] = [Math.min(...sizes) / 1.5, Math.max(...sizes) * 2];
  const { main, accent } = theme();
  const line = Array.from({ length: 50 }, (_, n) => low * (high / low) ** (n / 49));
  return {
    traces: [
      {
        type: "scatter",
        mode: "lines",
        x: line,
        y: line.map((n) => law.e + law.a * n ** -law.alpha),
        line: { color: accent, width: 2 },
        hovertemplate: "%{x:.3s} parameters: %{y:.4f}<extra>law</extra>",
      },
      {
        type: "scatter",
        mode: "markers",
        x: sizes,
        y: law.points.map(([, value]) => value),
        marker: { size: 9, color: main },
        hovertemplate: "%{x:.3s} parameters: %{y:.4f}<extra></extra>",
      },
    ],
    text: law.sentence ?? "Loss by number of parameters",
    layout: {
      xaxis: axis("parameters", { type: "log" }),
      yaxis: axis(`${measure.name} (${measure.unit})`, { type: "log" }),
    },
  };
}

// ---- memory, predicted and measured

function memorySection() {
  const known = runs.filter((run) => isNumber(run.peak_memory_bytes) && isNumber(run.predicted_memory_bytes));
  if (!known.length) return null;
  const errors = known.map((run) => run.predicted_memory_bytes / run.peak_memory_bytes - 1);
  const budgets = distinct(known.map((run) => run.budget_bytes).filter(isNumber));
  const percent = (value) => `${value > 0 ? "+" : ""}${(100 * value).toFixed(1)} %`;
  const most = Math.max(...known.map((run) => run.peak_memory_bytes));
  const words =
    `The predictions are between ${percent(Math.min(...errors))} and ${percent(Math.max(...errors))} off; `
    + `the most memory that a run took is ${bytes(most)}${budgets.length ? ` of a budget of ${budgets.map(bytes).join(" or ")}` : ""}.`;
  return section(
    "memory",
    "Memory",
    el("p", {}, words),
    picture(360, () => drawMemory(known, budgets, words)),
  );
}

function drawMemory(known, budgets, words) {
  const mib = (value) => value / 2 ** 20;
  const shown = known.slice(0, 2000);
  const all = known.flatMap((run) => [run.peak_memory_bytes, run.predicted_memory_bytes].map(mib));
  const ends = [Math.min(...all) * 0.95, Math.max(...all) * 1.05];
  const { soft, main, accent } = theme();
  const near = budgets.map(mib).filter((budget) => budget < ends[1] * 4);
  return {
    traces: [
      {
        type: "scatter",
        mode: "lines",
        x: ends,
        y: ends,
        line: { color: soft, width: 1, dash: "dot" },
        hoverinfo: "skip",
      },
      {
        type: "scatter",
        mode: "markers",
        x: shown.map((run) => mib(run.predicted_memory_bytes)),
        y: shown.map((run) => mib(run.peak_memory_bytes)),
        marker: { size: 8, color: main, opacity: 0.8 },
        hovertemplate: "%{text}<extra></extra>",
        text: shown.map(
          (run) =>
            `<b>${escaped(run.name, 120)}</b><br>predicted ${bytes(run.predicted_memory_bytes)}<br>measured ${bytes(run.peak_memory_bytes)}`,
        ),
      },
    ],
    text: words,
    layout: {
      xaxis: axis("predicted (MiB)"),
      yaxis: axis("measured (MiB)"),
      shapes: near.map((y) => ({
        type: "line",
        xref: "paper",
        x0: 0,
        x1: 1,
        y0: y,
        y1: y,
        line: { color: accent, width: 1.5, dash: "dash" },
      })),
      annotations: near.map((y) => ({
        xref: "paper",
        x: 1,
        y,
        text: "budget",
        showarrow: false,
        xanchor: "right",
        yanchor: "bottom",
        font: { color: accent, size: 12 },
      })),
    },
  };
}
