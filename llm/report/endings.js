// ---- rate transfer, samples and failed runs; then the page is put together

function transferSection() {
  const table = report.transfer;
  if (!table) return null;
  const rates = distinct(table.rows.flatMap((row) => Object.keys(row.means)));
  const cell = (row, rate) => (rate === row.best ? el("strong", {}, loss(row.means[rate])) : loss(row.means[rate]));
  const rows = table.rows.map((row) => [row.size, ...rates.map((rate) => cell(row, rate))]);
  const head = [`${short(table.size_key)} \\ ${short(table.rate_key)}`, ...rates];
  const box = { class: "scroll", tabindex: "0", role: "region", "aria-label": "Loss by size and rate" };
  return section(
    "transfer",
    "Does the best rate transfer?",
    paragraph(table.sentence ?? ""),
    el("div", box, tableOf(rows, head)),
  );
}

const FIRST_SAMPLES = 6;

function samplesSection() {
  const samples = inOrder(extra.samples ?? []).map(sampleOf);
  if (!samples.length) return null;
  const more = samples.splice(FIRST_SAMPLES);
  return section(
    "samples",
    "Samples",
    note("The last sample of each point comes first, beginning with the lowest loss."),
    el("div", { class: "samples" }, ...samples),
    more.length
      ? foldable("more", plural(more.length, "more sample"), el("div", { class: "samples" }, ...more))
      : null,
  );
}

// The last sample of each point, beginning with the lowest loss, then a second one of each, ...
function inOrder(samples) {
  const quality = (sample) => runs[sample.run]?.[measure.key] ?? Infinity;
  const seen = new Map();
  const ranked = [...samples]
    .sort((a, b) => quality(a) - quality(b) || (b.step ?? 0) - (a.step ?? 0))
    .map((sample) => {
      const point = runs[sample.run]?.point ?? `run ${sample.run}`;
      seen.set(point, (seen.get(point) ?? 0) + 1);
      return { sample, rank: seen.get(point) };
    });
  return ranked.sort((a, b) => a.rank - b.rank).map(({ sample }) => sample);
}

function sampleOf({ run: n, step, prompt, text, scores }) {
  const { run, point } = runRows[n];
  const name = point ? `${label(point)}, seed ${run.seed ?? "?"}` : run.name;
  const known = Object.entries(scores ?? {}).filter(([, value]) => isNumber(value));
  const words = known.map(([score, value]) => `${score.replaceAll("_", " ")} ${Number(value.toPrecision(3))}`);
  return el(
    "article",
    {},
    el("h3", {}, named(name, 100)),
    note([`step ${step ?? "?"}`, `loss ${loss(run[measure.key])}`, ...words].join(" · ")),
    el("pre", { tabindex: "0" }, el("span", { class: "prompt" }, visible(prompt, 1000)), visible(text, 5000)),
  );
}

const FIRST_FAILED = 50;

function failedSection() {
  const failed = runRows.filter(({ run }) => isFailed(run));
  if (!failed.length) return null;
  const more = failed.length - FIRST_FAILED;
  const entry = ({ run, n }) =>
    el(
      "div",
      { class: "failed" },
      el("h3", {}, named(run.name), ` · ${visible(run.status, 40)}`),
      run.reason ? paragraph(run.reason) : null,
      run.log ? foldable(`log${n}`, "End of the log", el("pre", { tabindex: "0" }, visible(run.log, 20000))) : null,
    );
  return section(
    "failed",
    "Runs that did not finish",
    ...failed.slice(0, FIRST_FAILED).map(entry),
    more > 0 ? note(`${plural(more, "more run")}: choose their state in the table above.`) : null,
  );
}

// ---- the page

function show() {
  document.title = visible(report.title || "Report", 200);
  const sections = [
    answerSection(),
    tableSection(),
    curvesSection(),
    parallelSection(),
    heatSection(),
    costSection(),
    importanceSection(),
    scalingSection(),
    transferSection(),
    samplesSection(),
    memorySection(),
    failedSection(),
  ];
  document
    .getElementById("main")
    .replaceChildren(el("header", {}, el("h1", {}, named(report.title || "Report", 200))), ...sections.filter(Boolean));
}

// While jobs run, the page is loaded again unless the reader is busy with it.
function refresh() {
  const selected = !getSelection().isCollapsed;
  const typing = document.activeElement?.matches("input, select");
  if (document.visibilityState !== "visible" || selected || typing) return;
  history.replaceState({ scroll: window.scrollY }, "");
  location.reload();
}

show();
if (pictures.length) draw(pictures[0]);
if (history.state?.scroll) window.scrollTo(0, history.state.scroll);
if (report.is_running) setInterval(refresh, 15000);
