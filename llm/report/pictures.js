// ---- the sections with pictures, in the order of the page

const MOST_CURVES = 300;
const MOST_NAMES = 24; // in the legend: as many as there are colours with a dash
const MOST_LINES = 400; // of the parallel coordinates

// ---- curves of the loss

const AXES = { step: "step", tokens: "tokens", seconds: "seconds of training", flops: "FLOPs" };
const KINDS = { val: "validation loss", train: "training loss" };
const curvesOf = new Map((extra.curves ?? []).map((curve) => [curve.run, curve]));
const hasNumbers = (values) => Boolean(values?.some(isNumber));
const numericKeys = keys.filter((key) => points.every((point) => asNumber(point.values[key]) !== null));

function curvesSection() {
  const curves = extra.curves ?? [];
  const kinds = Object.entries(KINDS).filter(([kind]) => curves.some((c) => hasNumbers(c[kind]?.loss)));
  if (!kinds.length) return null;
  const axes = Object.entries(AXES).filter(([x]) => curves.some((c) => kinds.some(([kind]) => hasNumbers(along(c, kind, x)))));
  const byKey = numericKeys.map((key) => [key, short(key)]);
  const colours = points.length > MOST_NAMES && byKey.length ? byKey : [["", "by point"], ...byKey];
  const legend = el("ul", { class: "legend", "aria-label": "Curves" });
  const difference = el("aside", { "aria-live": "polite" });
  const frame = picture(430, () => drawCurves(kinds, axes, colours, legend), (event) => pick(event.points[0].data.meta));
  const draw = () => difference.replaceChildren(...differenceOf());
  listeners.push(draw);
  draw();
  return section("curves", "Curves",
    el("div", { class: "controls" },
      choice("Loss", "loss", kinds), choice("Over", "x", axes),
      colours.length > 1 ? choice("Colour", "colour", colours) : null,
      checkbox("log x", "logx"), checkbox("log loss", "logy"), checkbox("Zoom to the end", "late"),
      field("Smoothing", "smooth", { type: "range", min: 0, max: 0.95, step: 0.05 })),
    el("div", { class: "beside" }, el("div", {}, frame, legend), difference));
}

// The values of an axis. The page has no numbers that follow from others: tokens are a multiple of
// steps, and FLOPs of tokens.
function along(curve, kind, x) {
  const values = curve[kind];
  const run = runs[curve.run];
  if (values?.[x] || !values?.step) return values?.[x] ?? [];
  const perStep = { tokens: run.tokens / run.step, flops: (run.tokens / run.step) * run.flops_per_token }[x];
  return perStep > 0 ? values.step.map((step) => step * perStep) : [];
}

function drawCurves(kinds, axes, colours, legend) {
  const kind = chosenOf("loss", kinds);
  const x = chosenOf("x", axes);
  const rows = sorted(shownRuns().filter(({ n }) => hasNumbers(curvesOf.get(n)?.[kind]?.loss)));
  const shown = rows.filter((row, n) => n < MOST_CURVES || isPicked(row.n));
  const style = styleOf(shown, chosenOf("colour", colours));
  const traces = shown.map((row) => curve(row, kind, x, style(row)));
  const range = state.late ? endOf(traces, state.logy) : undefined;
  if (style.bar) traces.push(style.bar);
  legend.replaceChildren(...(style.bar ? [] : legendOf(shown, style)));
  const left = rows.length - shown.length;
  const lowest = rows.length ? `; the lowest ${measure.name} is ${loss(Math.min(...rows.map(({ run }) => run[measure.key] ?? Infinity)))}` : "";
  if (left > 0) legend.append(el("li", { class: "soft" }, `${shown.length} of ${rows.length} curves are drawn: filter to see the others.`));
  return {
    traces, text: `${KINDS[kind]} of ${plural(shown.length, "run")} by ${AXES[x]}${lowest}`,
    layout: {
      xaxis: axis(AXES[x], { type: state.logx ? "log" : "linear" }),
      yaxis: axis(`${KINDS[kind]} (nats per token)`, { type: state.logy ? "log" : "linear", range }),
      uirevision: [kind, x, state.logx, state.logy, state.late].join(),
    },
  };
}

function curve(row, kind, x, { color, dash }) {
  const values = curvesOf.get(row.n)[kind];
  const few = values.loss.length <= 40;
  const picked = isPicked(row.n);
  const faded = state.picked.length > 0 && !picked;
  const name = escaped(row.point ? label(row.point) : row.run.name, 200);
  return {
    type: "scatter", mode: few ? "lines+markers" : "lines", meta: row.n,
    x: along(curvesOf.get(row.n), kind, x), y: smoothed(values.loss, state.smooth),
    line: { color, dash, width: picked ? 3.5 : 1.6 }, marker: { size: few ? 4 : 0, color },
    opacity: faded ? 0.25 : row.run.status === "finished" ? 1 : 0.6,
    hovertemplate: `<b>${name}</b><br>seed ${row.run.seed ?? "?"}, ${escaped(row.run.status)}`
      + `<br>${x} %{x:,.6~g}<br>loss %{y:.4f}<extra></extra>`,
  };
}

// The range of losses in the last two thirds of the rows, where curves differ by little.
function endOf(traces, isLog) {
  const late = traces.flatMap(({ y }) => y.slice(Math.floor(y.length / 3))).filter(isNumber);
  if (!late.length) return undefined;
  const [low, high] = [late.reduce((a, b) => Math.min(a, b)), late.reduce((a, b) => Math.max(a, b))];
  const room = 0.05 * (high - low) || 0.01;
  return [low - room, high + room].map((value) => (isLog ? Math.log10(value) : value));
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

// A function from a row to its colour and dash: a colour per point, or, if `key` is not empty, a
// scale over its values, which gets a bar.
function styleOf(rows, key) {
  const present = distinct(rows.map(({ point }) => point?.index ?? -1));
  const colours = theme().distinct;
  if (key === "") {
    return ({ point }) => {
      const n = present.indexOf(point?.index ?? -1);
      return { color: colours[n % colours.length], dash: DASHES[Math.floor(n / colours.length) % DASHES.length] };
    };
  }
  const scale = scaleOf(points.map((point) => asNumber(point.values[key])));
  const style = (row) => ({ color: scaled(scale.share(asNumber(settingOf(row, key)) ?? scale.low)), dash: "solid" });
  style.bar = colourBar(scale, short(key));
  return style;
}

// Shares of a range: logarithmic where the values span more than a factor of 20.
function scaleOf(values) {
  const known = values.filter(isNumber);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const isLog = low > 0 && high / low > 20;
  const bend = isLog ? Math.log10 : (value) => value;
  const span = bend(high) - bend(low);
  return { low, high, isLog, bend, share: (value) => (span > 0 ? (bend(value) - bend(low)) / span : 0.5) };
}

// Plotly draws a bar of colours only for a trace of markers, so this one has no visible marker.
function colourBar({ low, high, bend, isLog }, title) {
  const ticks = isLog ? [low, Math.sqrt(low * high), high] : [low, (low + high) / 2, high];
  return {
    type: "scatter", mode: "markers", x: [null], y: [null], hoverinfo: "skip",
    marker: {
      color: [bend(low)], cmin: bend(low), cmax: bend(high), colorscale: colorscale(), showscale: true,
      colorbar: {
        title: { text: escaped(title), font: { size: 12 } }, thickness: 10, outlinewidth: 0, len: 0.9,
        tickvals: ticks.map(bend), ticktext: ticks.map((tick) => String(Number(tick.toPrecision(3)))),
      },
    },
  };
}

// The legend is a list of buttons, so that curves can be picked with the keyboard, too.
function legendOf(rows, style) {
  const firsts = new Map();
  for (const row of rows) firsts.set(row.point?.index ?? `run ${row.n}`, firsts.get(row.point?.index) ?? row);
  return [...firsts.values()].slice(0, MOST_NAMES).map((row) => {
    const { color, dash } = style(row);
    const pressed = isPicked(row.n) ? "true" : "false";
    const name = row.point ? `${label(row.point)} (n ${row.point.n})` : row.run.name;
    return el("li", {}, el("button", { type: "button", "aria-pressed": pressed, onclick: () => pick(row.n) },
      swatch(color, dash), named(name, 60)));
  });
}

function swatch(color, dash) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const pattern = { solid: "", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3" }[dash];
  const set = (element, values) => Object.entries(values).forEach(([k, v]) => element.setAttribute(k, v));
  set(svg, { width: 26, height: 10, "aria-hidden": "true" });
  set(line, { x1: 0, x2: 26, y1: 5, y2: 5, stroke: color, "stroke-width": 2.5, "stroke-dasharray": pattern });
  svg.append(line);
  return svg;
}

// The settings of the picked runs that differ from the shared ones, and from each other.
function differenceOf() {
  const rows = state.picked.map((n) => runRows[Number(n)]).filter(Boolean);
  if (!rows.length) {
    return [el("p", { class: "soft" }, "Click on a curve to see its settings beside the shared ones, and on a second one to compare the two.")];
  }
  const value = (row, key) => row.run.changes?.[key] ?? row.point?.values?.[key] ?? report.shared?.[key];
  const changed = distinct(rows.flatMap(({ run, point }) => [...Object.keys(run.changes ?? {}), ...Object.keys(point?.values ?? {})]));
  const shown = rows.length === 1 ? changed : changed.filter((key) => String(value(rows[0], key)) !== String(value(rows[1], key)));
  const line = (title, cells) => el("tr", {}, el("th", { scope: "row" }, named(title, 40)),
    ...cells.map((cell) => el("td", {}, named(cell ?? DASH, 80))));
  return [
    el("h3", {}, rows.length === 1 ? "Settings that are not shared" : "Settings that differ"),
    el("table", {}, el("tbody", {},
      ...shown.map((key) => line(short(key), rows.map((row) => value(row, key)))),
      line("seed", rows.map(({ run }) => run.seed)), line("state", rows.map(({ run }) => run.status)),
      line(measure.name, rows.map(({ run }) => loss(run[measure.key]))))),
    ...rows.map(({ run }) => el("p", { class: "soft" }, named(run.folder))),
    el("button", { type: "button", onclick: () => choose({ picked: [] }) }, "Clear"),
  ];
}

// ---- parallel coordinates: a line per point crosses an axis per key

function parallelSection() {
  const varied = keys.filter((key) => distinct(points.map((point) => point.values[key])).length > 1).slice(0, 9);
  if (!varied.length || points.length < 3) return null;
  return section("parallel", "All settings at once",
    el("p", { class: "soft" }, `A line is a point; its colour is its ${measure.name}, where dark means low.`),
    el("div", {}, picture(380, () => drawParallel(varied))));
}

function drawParallel(varied) {
  const shown = shownPoints().filter((point) => isNumber(point.mean)).sort((a, b) => b.mean - a.mean).slice(-MOST_LINES);
  const axes = [
    ...varied.map((key) => placed(short(key), shown.map((point) => point.values[key]))),
    placed("parameters", shown.map((point) => point.parameters), count),
    placed(measure.name, shown.map((point) => point.mean), (value) => value.toFixed(3)),
  ];
  const colours = scaleOf(shown.map((point) => point.mean));
  const traces = shown.map((point, n) => ({
    type: "scatter", mode: "lines", x: axes.map((_, at) => at), y: axes.map(({ shares }) => shares[n]),
    line: { color: scaled(colours.share(point.mean)), width: point.index === best ? 4 : 1.5 }, opacity: 0.85,
    hovertemplate: `<b>${escaped(label(point), 200)}</b><br>${loss(point.mean)} (n ${point.n})<extra></extra>`,
  }));
  const { paper, soft } = theme();
  const side = (at) => (at === axes.length - 1 ? { xanchor: "right", xshift: -5 } : { xanchor: "left", xshift: 5 });
  const ticks = axes.flatMap(({ ticks: own }, at) => own.map(([share, text]) => ({
    x: at, y: share, text: escaped(text, 16), showarrow: false, bgcolor: paper, borderpad: 1, ...side(at), font: { size: 11, color: soft },
  })));
  const titles = axes.map(({ title }, at) => ({
    x: at, y: 1.12, text: escaped(title, narrow.matches ? 11 : 24), showarrow: false, font: { size: 13 },
    xanchor: at === 0 ? "left" : at === axes.length - 1 ? "right" : "center",
  }));
  return {
    traces, text: `${plural(shown.length, "point")} over ${varied.map(short).join(", ")}, parameters and ${measure.name}`,
    layout: {
      annotations: [...titles, ...ticks], hoverdistance: 30, margin: { l: 20, r: 20, t: 10, b: 10 },
      xaxis: axis("", { range: [-0.004, axes.length - 0.996], tickvals: axes.map((_, at) => at), showticklabels: false, fixedrange: true, gridcolor: soft, showline: false }),
      yaxis: axis("", { showticklabels: false, showgrid: false, range: [-0.05, 1.18], fixedrange: true, showline: false }),
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
  return section("heat", "Two settings",
    el("p", { class: "soft" }, `Mean ${measure.name} of all points with these two values, whatever their other settings are; n counts runs.`),
    el("div", { class: "controls" }, choice("Across", "heatx", across), choice("Down", "heaty", down)),
    picture(height, () => drawHeat(chosenOf("heatx", across), chosenOf("heaty", down))));
}

function drawHeat(across, down) {
  const shown = shownPoints().filter((point) => isNumber(point.mean));
  const columns = distinct(shown.map((point) => point.values[across]));
  const rows = distinct(shown.map((point) => point.values[down]));
  const cells = rows.map((row) => columns.map((column) => {
    const own = shown.filter((point) => point.values[across] === column && point.values[down] === row);
    const total = own.reduce((sum, point) => sum + point.mean, 0);
    return { mean: own.length ? total / own.length : null, n: own.reduce((sum, point) => sum + point.n, 0) };
  }));
  const small = columns.length * rows.length <= 80 && !(narrow.matches && columns.length > 5);
  const title = (value) => escaped(value ?? "unknown", 24);
  return {
    traces: [{
      type: "heatmap", x: columns.map((_, n) => n), y: rows.map((_, n) => n), z: cells.map((row) => row.map(({ mean }) => mean)),
      colorscale: colorscale(), xgap: 2, ygap: 2, colorbar: { thickness: 10, outlinewidth: 0 },
      text: cells.map((row) => row.map(({ mean, n }) => (mean === null ? "" : `${mean.toFixed(3)}<br>n ${n}`))),
      texttemplate: small ? "%{text}" : "", hovertemplate: "%{text}<extra></extra>", hoverongaps: false,
    }],
    text: `Mean ${measure.name} by ${short(across)} and ${short(down)} of ${plural(shown.length, "point")}`,
    layout: {
      xaxis: axis(short(across), { tickvals: columns.map((_, n) => n), ticktext: columns.map(title), showgrid: false }),
      yaxis: axis(short(down), { tickvals: rows.map((_, n) => n), ticktext: rows.map(title), showgrid: false, autorange: "reversed" }),
      uirevision: across + down,
    },
  };
}

// ---- the measure against what it costs

const COSTS = [
  ["parameters", "parameters", count], ["peak_memory_bytes", "memory", bytes],
  ["train_seconds", "time of training", duration], ["tokens_per_second", "tokens per second", count],
];

function costSection() {
  const known = COSTS.filter(([name]) => points.some((point) => isNumber(point[name])));
  if (!known.length || points.length < 2) return null;
  return section("cost", "Loss and its cost",
    el("p", { class: "soft" }, "Bars show the 95 % interval. The line joins the points that no other point beats in both."),
    el("div", { class: "controls" }, choice("Against", "against", known), checkbox("log axis", "logs")),
    picture(400, () => drawCost(known)));
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
    traces: [{
      type: "scatter", mode: "lines", x: front.map((point) => point[cost] / unit), y: front.map((point) => point.mean),
      line: { color: accent, width: 1.5, dash: "dot" }, hoverinfo: "skip",
    }, {
      type: "scatter", mode: "markers", x: shown.map((point) => point[cost] / unit), y: shown.map((point) => point.mean),
      error_y: { type: "data", array: shown.map(half), thickness: 1, width: 3, color: soft },
      marker: {
        size: shown.map((point) => (point.index === best ? 13 : 9)), line: { color: ink, width: 0.5 },
        symbol: shown.map((point) => (point.index === best ? "star" : front.includes(point) ? "diamond" : "circle")),
        color: shown.map((point) => (front.includes(point) ? accent : main)),
      },
      text: shown.map((point) => `<b>${escaped(label(point), 200)}</b><br>${loss(point.mean)} ± ${loss(half(point))}`
        + ` (n ${point.n})<br>${text(point[cost])}`),
      hovertemplate: "%{text}<extra></extra>",
    }],
    text: `${measure.name} of ${plural(shown.length, "point")} against ${title}; ${front.length} on the front: ${front.slice(0, 5).map(label).join("; ")}`,
    layout: {
      xaxis: axis(unit === 1 ? title : `${title} (MiB)`, { type: state.logs ? "log" : "linear" }),
      yaxis: axis(`${measure.name} (${measure.unit})`), uirevision: cost + state.logs,
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
    type: "bar", orientation: "h", y: names, x: values, marker: { color }, name: title,
    text: values.map((value) => (isNumber(value) ? value.toFixed(2) : "")), textposition: "outside", cliponaxis: false,
    hovertemplate: `${title} %{x:.3f}<extra>%{y}</extra>`,
  });
  return section("importance", "Which settings matter",
    el("p", { class: "soft" }, `The rank correlation with the ${measure.name} lies between -1 and 1: below 0, larger values are better. `
      + "The share of variance is known for grids."),
    picture(90 + 52 * rows.length, () => ({
      traces: [bars("rank correlation", rows.map((row) => row.correlation), theme().main),
        bars("share of variance", rows.map((row) => row.share), theme().accent)],
      text: rows.map(({ key, correlation, share }) => `${short(key)}: correlation ${loss(correlation)}, share ${loss(share)}`).join("; "),
      layout: {
        showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, bargap: 0.35,
        xaxis: axis("", { range: [-1.12, 1.12], zeroline: true, zerolinecolor: theme().soft }),
        yaxis: axis("", { type: "category" }), margin: { l: 56, r: 16, t: 34, b: 30 },
      },
    })));
}
