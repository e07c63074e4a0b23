// ---- shared by all pictures: drawing near the window, colours, and text that Plotly cannot
// mistake for HTML, a template or a formula

const escaped = (text, longest = 60) =>
  visible(text, longest).replace(/[&<>$%{}]/g, (mark) => `&#${mark.charCodeAt(0)};`);

// Colours that colour-blind people can tell apart, from Okabe and Ito (jfly.uni-koeln.de/color).
const ON_LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const ON_DARK = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00"];
const VIRIDIS = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"];

const dark = matchMedia("(prefers-color-scheme: dark)");
const printed = matchMedia("print");
const narrow = matchMedia("(max-width: 760px)");

function theme() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const isDark = dark.matches && !printed.matches;
  return {
    paper: colour("--paper"),
    ink: colour("--ink"),
    soft: colour("--soft"),
    rule: colour("--rule"),
    distinct: isDark ? ON_DARK : ON_LIGHT,
    main: isDark ? ON_DARK[0] : ON_LIGHT[0],
    accent: isDark ? ON_DARK[1] : ON_LIGHT[1],
    // the end of the scale that is hard to see on this paper is left out
    scale: isDark ? VIRIDIS.slice(1) : VIRIDIS.slice(0, 5),
  };
}

function colorscale() {
  const colours = theme().scale;
  return colours.map((colour, n) => [n / (colours.length - 1), colour]);
}

// The colour at `share` between 0 and 1 of the scale.
function scaled(share) {
  const colours = theme().scale;
  return colours[Math.round(share * (colours.length - 1))];
}

function axis(title, more = {}) {
  const { rule, soft } = theme();
  return {
    title: { text: escaped(title), font: { size: 13, color: soft }, standoff: 10 },
    gridcolor: rule,
    linecolor: rule,
    zeroline: false,
    tickfont: { size: 12, color: soft },
    automargin: true,
    ...more,
  };
}

function layoutOf(layout) {
  const { paper, ink } = theme();
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false,
    hovermode: "closest",
    margin: { l: 56, r: 16, t: 14, b: 46 },
    uirevision: "same",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: ink },
    hoverlabel: { align: "left", namelength: 0, bgcolor: paper, bordercolor: ink, font: { color: ink } },
    dragmode: narrow.matches ? false : "zoom", // a finger scrolls the page
    ...(printed.matches ? { width: 660 } : {}),
    ...layout,
  };
}

// ---- a picture is drawn when it comes near the window, and again after every change

const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };
const pictures = [];

// compute() returns {traces, layout, text}, where text says the same as the picture in words.
function picture(height, compute, onclick = null) {
  const frame = el("div", { class: "plot", role: "img", style: `height: ${height}px` });
  const drawing = { frame, compute, onclick, near: false, stale: true };
  pictures.push(drawing);
  nearby.observe(frame);
  return frame;
}

const nearby = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const drawing = pictures.find(({ frame }) => frame === target);
      drawing.near = isIntersecting;
      if (isIntersecting && drawing.stale) draw(drawing);
    }
  },
  { rootMargin: "300px" },
);

// Plotly comes last on the page and takes most of a second, so words and tables are shown before.
const loaded = new Promise((resolve) => window.addEventListener("load", resolve));

async function draw(drawing) {
  drawing.stale = false;
  await loaded;
  const { frame, onclick } = drawing;
  if (typeof Plotly === "undefined") {
    frame.textContent = "plotly.min.js is missing beside this page, so there are no pictures.";
    return;
  }
  const { traces, layout, text } = drawing.compute();
  frame.setAttribute("aria-label", visible(text, 1000));
  await Plotly.react(frame, traces, layoutOf(layout), CONFIG);
  if (onclick && !drawing.listens) frame.on("plotly_click", onclick);
  drawing.listens = true;
  if (!performance.getEntriesByName("first-picture").length) performance.mark("first-picture");
}

function redraw(everything = false) {
  for (const drawing of pictures) {
    drawing.stale = true;
    if (drawing.near || everything) draw(drawing);
  }
}

const TABLE_ONLY = ["rows", "sort", "down", "all", "columns", "open"];
listeners.push((changes) => {
  if (Object.keys(changes).some((name) => !TABLE_ONLY.includes(name))) redraw();
});
dark.addEventListener("change", () => redraw());
printed.addEventListener("change", () => {
  for (const details of document.querySelectorAll(".failed details")) {
    details.open = printed.matches || state.open.includes(details.id);
  }
  redraw(true);
});

// ---- traces

const lines = (x, y, line, more = {}) => ({ type: "scatter", mode: "lines", x, y, line, hoverinfo: "skip", ...more });
const dots = (x, y, marker, text, more = {}) => ({
  type: "scatter",
  mode: "markers",
  x,
  y,
  marker,
  text,
  hovertemplate: "%{text}<extra></extra>",
  ...more,
});
const measureAxis = () => axis(`${measure.name} (${measure.unit})`);
