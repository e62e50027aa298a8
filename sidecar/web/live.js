// The live page: asks the sidecar for news every two seconds and shows them.
"use strict";

const POLL_MS = 2000, LEAST_SHOWN_S = 300, SHOWN_FEATURES = 12;
const RANGES = {"15 min": 900, "1 h": 3600, "6 h": 21600, "24 h": 86400, "7 days": 604800};
const LONGEST_S = RANGES["7 days"], FAR_S = 365 * 86400;

// What each tile shows: the field that findings are about, a text, notes below it, and if there is a limit, value and limit.
const TILES = {
  "RMSE, score points": (now) => ({
    of: "prequential_rmse", text: number(now.prequential_rmse), notes: [
      known(now.prequential_winsorized_rmse) && `winsorized: ${number(now.prequential_winsorized_rmse)}`,
      known(now.prequential_constant_rmse) && `of a constant: ${number(now.prequential_constant_rmse)}`,
      ...references("rmse"), alertAbove(now, "prequential_rmse"),
    ],
  }),
  "PLCC": (now) => ({
    of: "prequential_plcc",
    text: known(now.prequential_plcc) ? number(now.prequential_plcc, 5) : known(now.prequential_rmse) ? "undefined" : "–",
    notes: [
      now.prequential_plcc === 0 && "all predictions are the same",
      !known(now.prequential_plcc) && known(now.prequential_rmse) && "all scores are the same",
      ...references("plcc"),
    ],
  }),
  "Feature drift, deviations": (now) => ({
    of: ["feature_drift", "shifted_features"], text: number(now.feature_drift, 3),
    notes: [
      now.drifting_feature && `most: ${now.drifting_feature}`, alertAbove(now, "feature_drift"),
      known(now.feature_distance) && `${count(now.shifted_features)} distributed otherwise than before`,
    ],
  }),
  "Loss, score points²": (now) => ({of: "loss", text: number(now.loss), notes: ["of the last batch"]}),
  "Pairs per second": (now) => ({
    of: "pairs", text: number(now.pairs_per_second), notes: [`${count(now.current_samples)} in the journal`],
  }),
  "Outliers, not trained on": (now) => ({of: "outliers", text: count(now.outliers), notes: [now.unusual_features]}),
  "Weights diverged": (now) => ({
    of: "divergences", text: count(now.divergences),
    notes: [known(now.learning_rate_share) && `learning rate: ${number(now.learning_rate_share)} of what is set`],
  }),
  "Fits to the replay buffer, adopted": (now) => ({
    of: "refits", text: count(now.refits?.adopted ?? 0), notes: [`no better, not adopted: ${count(now.refits?.rejected ?? 0)}`],
  }),
  "Scores changed meaning": (now) => ({of: "shifts", text: count(now.shifts), notes: []}),
  "Journal": (now) => {
    const limit = Number(latest.settings.journal_max_bytes) || 0;
    return {
      of: ["journal_errors", "journal_bytes"], text: bytes(now.journal_bytes ?? 0), size: now.journal_bytes, limit, limitText: bytes(limit),
      notes: [limit && full(limit - now.journal_bytes, "at its limit"), alertAbove(now, "journal_bytes", bytes)],
    };
  },
  "Disk": (now) => ({
    of: "disk_free_bytes", text: known(now.disk_free_bytes) ? `${bytes(now.disk_free_bytes)} free` : "–",
    notes: [known(now.disk_free_bytes) && full(now.disk_free_bytes, "full")],
  }),
  "Replay buffer": (now) => ({
    of: "replay_size", text: count(now.replay_size), size: now.replay_size, limit: now.replay_capacity,
    notes: [known(now.replay_evictions) && `${count(now.replay_evictions)} evicted`],
  }),
  "Held out": (now) => ({
    of: "held_out_size", text: count(now.held_out_size), size: now.held_out_size, limit: now.held_out_capacity, notes: [],
  }),
};
const CHARTS = [
  {
    column: "prequential_rmse", title: "RMSE", about: "on the last 1,000 pairs, each predicted before training",
    y: "score points", log: true, more: () => [
      {name: "winsorized", points: points("prequential_winsorized_rmse")},
      {name: "of a constant", points: points("prequential_constant_rmse")}, ...flat("rmse"),
    ],
  },
  {column: "prequential_plcc", title: "PLCC", about: "on the same pairs", y: "correlation", most: 1},
  {
    column: "feature_drift", title: "Feature drift", about: "of the feature that has moved most", y: "standard deviations",
    zero: true, more: () => known(latest.limits?.feature_drift) ? [level("alert", latest.limits.feature_drift)] : [],
  },
  {column: "loss", title: "Loss", about: "of the last batch before its first step", y: "score points²", log: true},
  {column: "pairs_per_second", title: "Pairs per second", about: "received", y: "pairs per second", zero: true},
];

let rows = []; // [{time, prequential_rmse, …}], oldest first
let latest = null; // the last answer
let redraw = []; // a function for each chart, once it has something to show
let checkpoints = {latest: null, stable: null, checkpoints: []}; // as shown
let drifted = ""; // the figures of the drift that is shown
let range = RANGES["6 h"];

const fillCounts = (table, counts) =>
  fill(table, [], counts.map(([name, n]) => [element("th", name), element("td", count(n), "number")]));

async function poll() {
  if (document.hidden) return;
  try {
    take(await ask(`api/history?since=${rows.length ? rows.at(-1).time : 0}`));
    const {latest_version = null, stable_version = null} = latest.now;
    const areShown = latest_version === checkpoints.latest && stable_version === checkpoints.stable;
    if (!areShown) showCheckpoints(await ask("api/checkpoints"));
    if (drifted !== driftOf(latest.now)) showDrift(await ask("api/drift"));
    $("lost").hidden = true;
    document.body.classList.remove("lost");
  } catch (error) {
    showLoss(error);
  }
}

function take(answer) {
  const {now, columns} = answer;
  const fresh = answer.rows.map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])));
  latest = answer;
  rows = thinned([...rows, ...fresh].filter(({time}) => time > now.time - LONGEST_S && time <= now.time));
  showState(now);
  showTiles(now);
  if (range <= RANGES["1 h"] || fresh.length || !redraw.length) showCharts();
  fillCounts($("pairs"), Object.entries(now.pairs).map(([name, n]) => [name.replace("_", " "), n]));
  const rejected = Object.entries(now.rejected ?? {}).sort((a, b) => b[1] - a[1]);
  $("no-rejected").hidden = rejected.length > 0;
  fillCounts($("rejected"), rejected);
  fill($("settings"), [], Object.entries(answer.settings).map(([name, value]) =>
    [element("th", name.replaceAll("_", " ")), element("td", value === null ? "–" : String(value))]));
  showTenants(answer.tenants);
  $("live").hidden = false;
}

// How many seconds rows of a time are apart.
const apart = (time) => latest.tiers?.find(([age]) => latest.now.time - time <= age)?.[1] ?? latest.every_seconds;
// As the sidecar thins them, since this page may be open for long: the last row of each span of time.
const thinned = (all) => all.filter(({time}, i) => {
  const every = apart(time), after = all[i + 1];
  return !after || Math.floor(time / every) < Math.floor(after.time / every);
});

function showTiles(now) {
  const wrong = new Map((now.findings ?? []).map((each) => [each.figure, each.alert_at ? "pending" : each.severity]).reverse());
  $("tiles").replaceChildren(...Object.entries(TILES).map(([name, of]) => tile(name, of(now), wrong)));
}

// wrong: by field, `pending` or the severity of the worst finding that is about it.
function tile(name, {of, text, notes, size, limit, limitText = count(limit)}, wrong) {
  const made = document.createElement("div"), value = element("dd", text);
  made.className = [of].flat().map((field) => wrong.get(field)).find(Boolean) ?? "";
  made.append(element("dt", name), value);
  if (limit) {
    const meter = document.createElement("meter");
    meter.max = limit;
    meter.value = size;
    meter.setAttribute("aria-label", name);
    value.append(element("small", ` of ${limitText}`, "quiet"), meter);
  }
  for (const note of notes.filter(Boolean)) made.append(element("dd", note, "note"));
  return made;
}

// The limit of a field, as the alert has it; of some it is a share of another field.
function alertAbove(now, field, inWords = number) {
  for (const [name, limit] of Object.entries(latest.limits ?? {})) {
    const [above, below] = name.split("/");
    if (above === field && (!below || known(now[below]))) return `alert above ${inWords(below ? limit * now[below] : limit)}`;
  }
  return "";
}

// What the stable and the base model had on held-out pairs, when the gate compared them last.
function compared(figure) {
  const newest = checkpoints.checkpoints.find((each) => each.compared) ?? {};
  const rows = (newest.compared ?? []).filter(({on, model}) => on === newest.compared[0].on && model !== "this model");
  const stable = checkpoints.checkpoints.find(({name}) => name === checkpoints.stable);
  const others = rows.filter(({model}) => !checkpoints.checkpoints.some(({name}) => name === model));
  return [
    ...(stable ? [{name: `stable, ${stable.name}`, value: stable[figure]}] : []),
    ...others.map((row) => ({name: row.model, value: row[figure]})),
  ].filter(({value}) => known(value));
}
const references = (figure) => compared(figure).map(({name, value}) => `${name}, held out: ${number(value)}`);
const flat = (figure) => compared(figure).map(({name, value}) => level(`${name}, held out`, value));
const level = (name, y) => ({name, points: [shownFrom(), latest.now.time].map((time) => ({x: new Date(1000 * time), y}))});

// When so many more bytes will have come, at the rate of the last hours.
function full(left, what) {
  const since = rows.find(({time}) => time > latest.now.time - RANGES["6 h"]), {now} = latest;
  const rate = since ? (now.journal_bytes - since.journal_bytes) / Math.max(1, now.time - since.time) : 0;
  return rate > 0 && left > 0 && left / rate < FAR_S ? `${what} in about ${duration(left / rate)}` : "";
}

// The first line: the phase, and what is wrong. Below it, each finding with its time and what to do. A finding that has not lasted
// long enough for an alert is told, but does not change the first line.
function showState(now) {
  const findings = now.findings ?? [], firing = findings.filter((each) => !each.alert_at), calm = !firing.length;
  const isGood = now.phase === "running" && now.making_progress && calm, isStarting = now.phase === "initializing";
  const words = [element("span", now.phase, isGood ? "good" : isStarting && calm ? "quiet" : "bad")];
  if (!now.making_progress) words.push(element("span", ", but not making progress", "bad"));
  if (!calm) words.push(element("span", `${now.phase === "running" ? ", but" : ":"} ${inWords(firing[0])}`, "bad"));
  else if (now.reason) words.push(element("span", `: ${now.reason}`));
  else if (isGood) words.push(element("span", ", and nothing is wrong", "good"));
  $("state").replaceChildren(...words);
  $("findings").replaceChildren(...findings.map((each) => finding(each, now.time, each === firing[0])));
  const connections = `${count(now.connections)} connection${now.connections === 1 ? "" : "s"}`;
  const up = now.started ? `up for ${duration(now.time - new Date(now.started) / 1000)}` : "";
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const program = latest.version ? `version ${latest.version}` : "";
  $("about").textContent = [now.host, program, up, connections, `${clock(now.time)} (${zone})`].filter(Boolean).join(" · ");
}

const withCode = (text) => text.split("`").map((part, i) => element(i % 2 ? "code" : "span", part));
const inWords = ({what, detail}) => (detail ? `${what}: ${detail}` : what);

function finding(told, now, isInFirstLine) {
  const made = document.createElement("li"), since = new Date(told.since) / 1000;
  made.className = told.alert_at ? "quiet" : told.severity;
  const alert = told.alert_at ? `, alert at ${clock(new Date(told.alert_at) / 1000)}` : "";
  const time = `Since ${clock(since)}, ${duration(now - since)}${alert}. `;
  if (!isInFirstLine) made.append(element("strong", `${capital(inWords(told))}. `));
  made.append(element("span", time), ...withCode(told.do ?? ""));
  return made;
}

function showLoss(error) {
  const since = latest ? ` These figures are from ${clock(latest.now.time)}.` : "";
  const {what, do: todo} = latest?.lost ?? {what: "the sidecar does not answer", do: ""};
  $("lost").replaceChildren(...withCode(`${capital(what)} (${error.message}). ${todo}${since} This page keeps trying.`));
  $("lost").hidden = false;
  document.body.classList.add("lost");
}

// The seconds since the epoch from which on the charts show something.
const shownFrom = () => Math.max(latest.now.time - range, Math.min(rows[0]?.time ?? Infinity, latest.now.time - LEAST_SHOWN_S));

// A chart's points up to now. Where the sidecar was down, a point without a value leaves a gap in the line.
function points(column) {
  const made = [], from = shownFrom();
  for (const row of [...rows.filter(({time}) => time >= from), latest.now]) {
    const before = made.at(-1);
    const x = new Date(1000 * row.time);
    if (before && x - before.x > 3000 * apart(before.x / 1000)) made.push({x, y: null});
    made.push({x, y: row[column] ?? null});
  }
  return made;
}

// The checkpoints that were published in the time that is shown.
const events = () => checkpoints.checkpoints
  .map(({name, gate, created_at}) => ({name, gate: gate ?? "–", kind: gateClass(gate), x: new Date(created_at)}))
  .filter(({x}) => x >= 1000 * shownFrom() && x <= 1000 * latest.now.time);

function showCharts() {
  CHARTS.forEach(({column, title, about, more = () => [], ...axis}, i) => {
    if (redraw[i]) {
      if (!$(column).matches(":hover")) redraw[i](); // redrawing would remove the tip under the pointer
    } else if (points(column).some((point) => point.y !== null)) {
      const figure = document.createElement("figure"), chart = document.createElement("div");
      const caption = element("figcaption", "");
      caption.append(element("strong", title), element("span", ` ${about}`));
      chart.className = "chart";
      chart.id = column;
      figure.append(caption, chart);
      figure.style.order = i;
      $("charts").append(figure);
      $("no-charts").hidden = true;
      $("ranges").hidden = false;
      const series = () => [{name: title, points: points(column)}, ...more()];
      const axes = () => ({x: null, ...axis, time: true, from: new Date(1000 * shownFrom()), events: events()});
      redraw[i] = Charts.show(chart, `${title} over time`, (width) => Charts.lines(width, series(), axes()));
    }
  });
}

for (const [name, seconds] of Object.entries(RANGES)) {
  const label = document.createElement("label"), input = document.createElement("input");
  input.type = "radio";
  input.name = "range";
  input.checked = seconds === range;
  input.addEventListener("change", () => {
    range = seconds;
    redraw.forEach((draw) => draw?.());
  });
  label.append(input, ` ${name}`);
  $("ranges").append(label);
}

const driftOf = ({feature_distance, shifted_features, shifted}) => [feature_distance, shifted_features, shifted].join();

// The features that are farthest from what they were: quantiles of the first encodes and of the latest ones.
function showDrift({reference_groups: first, latest_groups: last, limit, features}) {
  drifted = driftOf(latest.now);
  $("about-features").textContent = features.length
    ? `The latest ${last} encodes beside the first ${first}: thin bars from 5 to 95 %, thick ones from 25 to 75 %. A distance ` +
      `(Kolmogorov–Smirnov) over ${number(limit, 2)} is more than chance allows.` +
      (features.length > SHOWN_FEATURES ? ` The farthest ${SHOWN_FEATURES} of ${count(features.length)}.` : "")
    : `Compared once there are ${count(first + last)} encodes.`;
  $("features").replaceChildren(...features.slice(0, SHOWN_FEATURES).map((each) => {
    const figure = document.createElement("figure"), chart = document.createElement("div");
    const caption = element("figcaption", ""), isFar = known(each.since);
    caption.append(element("strong", each.name, ...(isFar ? ["bad"] : [])), ` distance ${number(each.distance, 2)}`);
    if (isFar) caption.append(`, since pair ${count(each.since)}`);
    chart.className = "chart";
    figure.append(caption, chart);
    const parts = [{name: "first", quantiles: each.reference}, {name: "latest", quantiles: each.latest}];
    Charts.show(chart, `${each.name}, first and latest`, (width) => Charts.spreads(width, parts, {x: null, zero: false}));
    return figure;
  }));
}

const TENANTS = {name: "Tenant", pairs: "Pairs", rmse_of_shared: "RMSE, shared", rmse: "RMSE, own head", used: "In use"};
let order = {by: "pairs", falling: true}; // of the tenants, chosen by a click on a column's name

function showTenants(tenants) {
  $("with-tenants").hidden = !tenants?.length;
  const heads = Object.entries(TENANTS).map(([by, name]) => {
    const head = element("th", "", ...(by === "name" ? [] : ["number"])), button = element("button", name, "plain");
    button.addEventListener("click", () => {
      order = {by, falling: by === order.by ? !order.falling : by !== "name"};
      showTenants(tenants);
    });
    if (by === order.by) head.ariaSort = order.falling ? "descending" : "ascending";
    head.append(button);
    return head;
  });
  const compare = ({[order.by]: a}, {[order.by]: b}) => (a < b ? -1 : a > b ? 1 : 0) * (order.falling ? -1 : 1);
  const table = $("tenants"), focused = table.contains(document.activeElement) && document.activeElement.textContent;
  fill(table, heads, [...(tenants ?? [])].sort(compare).map((each) => [
    element("th", each.name),
    element("td", count(each.pairs), "number"),
    ...[each.rmse_of_shared, each.rmse].map((figure) => element("td", number(figure), "number")),
    element("td", each.used ? "yes" : "no", each.used ? "good" : "quiet", "number"),
  ]));
  if (focused) heads.find((head) => head.textContent === focused)?.firstChild.focus();
}

function showCheckpoints(told) {
  $("no-checkpoints").hidden = told.checkpoints.length > 0;
  const head = ["Checkpoint", "Gate", "RMSE", "PLCC", "SROCC", "Held out", "Trained on", "Published", "SHA-256"];
  const isNumber = (place) => place >= 2 && place <= 6;
  fill(
    $("checkpoints"),
    head.map((name, place) => element("th", name, ...(isNumber(place) ? ["number"] : []))),
    told.checkpoints.flatMap((each) => checkpointRows(each, ["latest", "stable"].filter((mark) => told[mark] === each.name))),
  );
  checkpoints = told;
  showTiles(latest.now);
  showCharts();
}

// A checkpoint's row and, if it did not pass the gate or was taken back, a second row with the reason.
function checkpointRows(each, marks) {
  const name = element("th", ""), link = element("a", each.name), published = new Date(each.created_at);
  link.href = `checkpoint?${encodeURIComponent(each.name)}`;
  name.append(link);
  for (const mark of marks) name.append(" ", element("span", mark, "mark"));
  const digest = element("td", String(each.sha256 ?? "–").slice(0, 16), "digest");
  digest.title = each.sha256 ?? "";
  const row = [
    name,
    element("td", each.gate?.replace("_", " ") ?? "–", gateClass(each.gate)),
    ...[each.rmse, each.plcc, each.srocc].map((figure) => element("td", number(figure, 5), "number")),
    ...[each.held_out, each.pairs_seen].map((pairs) => element("td", count(pairs), "number")),
    element("td", Number.isNaN(published.getTime()) ? each.created_at ?? "–" : published.toLocaleString()),
    digest,
  ];
  if (each.gate === "stable" || !each.reason) return [row];
  const reason = element("td", "", "reason", "quiet");
  reason.append(element("div", each.reason));
  reason.colSpan = row.length;
  return [row, [reason]];
}

let wake = () => {}; // ends the wait for the next poll
document.addEventListener("visibilitychange", () => wake());

(async () => {
  for (;;) {
    await poll();
    await new Promise((resolve) => {
      wake = resolve;
      setTimeout(resolve, POLL_MS);
    });
  }
})();
