const MOST_CURVES = 300;
const MOST_NAMES = 24; // in the legend: as many as there are colours with a dash

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
  const axes = Object.entries(AXES).filter(([x]) =>
    curves.some((c) => kinds.some(([kind]) => hasNumbers(c[kind]?.[x]))),
  );
  const byKey = numericKeys.map((key) => [key, short(key)]);
  const colours = points.length > MOST_NAMES && byKey.length ? byKey : [["", "by point"], ...byKey];
  const legend = el("ul", { class: "legend", "aria-label": "Curves" });
  const difference = el("aside", { "aria-live": "polite" });
  const frame = picture(
    430,
    () => drawCurves(kinds, axes, colours, legend),
    (event) => pick(event.points[0].data.meta),
  );
  const draw = () => difference.replaceChildren(...differenceOf());
  listeners.push(draw);
  draw();
  return section(
    "curves",
    "Curves",
    el(
      "div",
      { class: "controls" },
      choice("Loss", "loss", kinds),
      choice("Over", "x", axes),
      colours.length > 1 ? choice("Colour", "colour", colours) : null,
      checkbox("log x", "logx"),
      checkbox("log loss", "logy"),
      checkbox("Zoom to the end", "late"),
      field("Smoothing", "smooth", { type: "range", min: 0, max: 0.95, step: 0.05 }),
    ),
    el("div", { class: "beside" }, el("div", {}, frame, legend), difference),
  );
}

function drawCurves(kinds, axes, colours, legend) {
  const kind = chosenOf("loss", kinds);
  const x = chosenOf("x", axes);
  const rows = sorted(shownRuns().filter(({ n }) => hasNumbers(curvesOf.get(n)?.[kind]?.loss)));
  const shown = rows.filter((row, n) => n < MOST_CURVES || isPicked(row.n));
  const style = styleOf(chosenOf("colour", colours));
  const traces = shown.map((row) => curve(row, kind, x, style(row)));
  const range = state.late ? endOf(traces, state.logy) : undefined;
  if (style.bar) traces.push(style.bar);
  legend.replaceChildren(...(style.bar ? [] : legendOf(shown, style)));
  const left = rows.length - shown.length;
  const lowest = rows.length
    ? `; the lowest ${measure.name} is ${loss(Math.min(...rows.map(({ run }) => run[measure.key] ?? Infinity)))}`
    : "";
  if (left > 0) {
    const words = `${shown.length} of ${rows.length} curves are drawn: filter to see the others.`;
    legend.append(el("li", { class: "soft" }, words));
  }
  return {
    traces,
    text: `${KINDS[kind]} of ${plural(shown.length, "run")} by ${AXES[x]}${lowest}`,
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
    type: "scatter",
    mode: few ? "lines+markers" : "lines",
    meta: row.n,
    x: values[x] ?? [],
    y: smoothed(values.loss, state.smooth),
    line: { color, dash, width: picked ? 3.5 : 1.6 },
    marker: { size: few ? 4 : 0, color },
    opacity: faded ? 0.25 : row.run.status === "finished" ? 1 : 0.6,
    hovertemplate:
      `<b>${name}</b><br>seed ${escaped(row.run.seed ?? "?")}, ${escaped(row.run.status)}`
      + `<br>${x} %{x:,.6~g}<br>loss %{y:.4f}<extra></extra>`,
  };
}

// The range of losses in the last two thirds of the rows, where curves differ by little.
function endOf(traces, isLog) {
  const late = traces.flatMap(({ y }) => y.slice(Math.floor(y.length / 3))).filter(isNumber);
  if (!late.length) return undefined;
  const [low, high] = [late.reduce((a, b) => Math.min(a, b)), late.reduce((a, b) => Math.max(a, b))];
  const room = 0.05 * (high - low) || 0.01;
  return [low - room, high + room].map((value) => (isLog ? Math.log10(Math.max(value, low / 2)) : value));
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
function styleOf(key) {
  const { distinct: colours, soft } = theme();
  if (key === "") {
    return ({ point }) => {
      if (!point) return { color: soft, dash: "dot" };
      const turn = Math.floor(point.index / colours.length);
      return { color: colours[point.index % colours.length], dash: DASHES[turn % DASHES.length] };
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
    type: "scatter",
    mode: "markers",
    x: [null],
    y: [null],
    hoverinfo: "skip",
    marker: {
      color: [bend(low)],
      cmin: bend(low),
      cmax: bend(high),
      colorscale: colorscale(),
      showscale: true,
      colorbar: {
        title: { text: escaped(title), font: { size: 12 } },
        thickness: 10,
        outlinewidth: 0,
        len: 0.9,
        tickvals: ticks.map(bend),
        ticktext: ticks.map((tick) => String(Number(tick.toPrecision(3)))),
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
    return el(
      "li",
      {},
      el(
        "button",
        { type: "button", "aria-pressed": pressed, onclick: () => pick(row.n) },
        swatch(color, dash),
        named(name, 60),
      ),
    );
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
    const words = "Click on a curve to see in which settings it differs, and on a second one to compare the two.";
    return [paragraph(words, "soft hint")];
  }
  const value = (row, key) => row.run.changes?.[key] ?? row.point?.values?.[key] ?? report.shared?.[key];
  const changed = distinct(
    rows.flatMap(({ run, point }) => [...Object.keys(run.changes ?? {}), ...Object.keys(point?.values ?? {})]),
  );
  const shown =
    rows.length === 1 ? changed : changed.filter((key) => String(value(rows[0], key)) !== String(value(rows[1], key)));
  const cell = (value) => el("td", {}, named(value ?? DASH, 80));
  const line = (title, of) => el("tr", {}, el("th", { scope: "row" }, named(title, 40)), ...rows.map(of).map(cell));
  const lines = [
    ...shown.map((key) => line(short(key), (row) => value(row, key))),
    line("seed", ({ run }) => run.seed),
    line("state", ({ run }) => run.status),
    line(measure.name, ({ run }) => loss(run[measure.key])),
  ];
  return [
    el("h3", {}, rows.length === 1 ? "Settings that are not shared" : "Settings that differ"),
    el("table", {}, el("tbody", {}, ...lines)),
    ...rows.map(({ run }) => note(run.folder)),
    el("button", { type: "button", onclick: () => choose({ picked: [] }) }, "Clear"),
  ];
}
