// The live page: asks the sidecar for news every two seconds and shows them. Whatever the sidecar sends is shown only as text.
"use strict";

const POLL_MS = 2000, PATIENCE_MS = 5000, SHOWN_S = 6 * 3600, LEAST_SHOWN_S = 300;
const $ = (id) => document.getElementById(id);
const number = (value, digits = 4) =>
  value === null || value === undefined ? "–" : value.toLocaleString("en", {maximumSignificantDigits: digits});
const count = (value) => (value ?? 0).toLocaleString("en");
const capital = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);
const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString();

// What each tile shows: a text and, if there is a limit, the value and the limit.
const TILES = {
  "RMSE, score points": (now) => [number(now.prequential_rmse)],
  "PLCC": (now) => [number(now.prequential_plcc, 5)],
  "Loss, score points²": (now) => [number(now.loss)],
  "Pairs per second": (now) => [number(now.pairs_per_second)],
  "Pairs in the journal": (now) => [count(now.current_samples)],
  "Feature drift, deviations": (now) => [[number(now.feature_drift, 3), now.drifting_feature].filter(Boolean).join(" ")],
  "Replay buffer": (now) => [count(now.replay_size), now.replay_size, now.replay_capacity],
  "Held out": (now) => [count(now.held_out_size), now.held_out_size, now.held_out_capacity],
};
const CHARTS = [
  {
    column: "prequential_rmse", title: "RMSE", about: "on the last 1,000 pairs, each predicted before training",
    y: "score points",
  },
  {column: "prequential_plcc", title: "PLCC", about: "on the same pairs", y: "correlation", most: 1},
  {column: "loss", title: "Loss", about: "of the last batch before its first step", y: "score points²", log: true},
  {column: "pairs_per_second", title: "Pairs per second", about: "received", y: "pairs per second", zero: true},
];

let rows = []; // [{time, prequential_rmse, …}], oldest first
let latest = null; // the last answer
let redraw = []; // a function for each chart, once it has something to show
let checkpoints = {latest: null, stable: null}; // as shown

function element(name, text, ...classes) {
  const made = document.createElement(name);
  made.textContent = text;
  made.classList.add(...classes);
  return made;
}

// head and each element of lines are the cells of a row.
function fill(table, head, lines) {
  const row = (cells) => {
    const made = document.createElement("tr");
    made.append(...cells);
    return made;
  };
  table.replaceChildren();
  if (lines.length && head.length) table.createTHead().append(row(head));
  table.createTBody().append(...lines.map(row));
}

const fillCounts = (table, counts) =>
  fill(table, [], counts.map(([name, n]) => [element("th", name), element("td", count(n), "number")]));

async function ask(path) {
  const answer = await fetch(path, {signal: AbortSignal.timeout(PATIENCE_MS), cache: "no-store"});
  if (!answer.ok) throw new Error(`answered ${answer.status}`);
  return answer.json();
}

async function poll() {
  if (document.hidden) return;
  try {
    take(await ask(`api/history?since=${rows.length ? rows.at(-1).time : 0}`));
    const {latest_version = null, stable_version = null} = latest.now;
    const areShown = latest_version === checkpoints.latest && stable_version === checkpoints.stable;
    if (!areShown) showCheckpoints(await ask("api/checkpoints"));
    $("lost").hidden = true;
    document.body.classList.remove("lost");
  } catch (error) {
    showLoss(error);
  }
}

function take(answer) {
  const {now, columns} = answer;
  const fresh = answer.rows.map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])));
  rows = [...rows, ...fresh].filter(({time}) => time > now.time - SHOWN_S && time <= now.time);
  latest = answer;
  showState(now);
  $("tiles").replaceChildren(...Object.entries(TILES).map(([name, of]) => tile(name, ...of(now))));
  showCharts();
  fillCounts($("pairs"), Object.entries(now.pairs).map(([name, n]) => [name.replace("_", " "), n]));
  const rejected = Object.entries(now.rejected ?? {}).sort((a, b) => b[1] - a[1]);
  $("no-rejected").hidden = rejected.length > 0;
  fillCounts($("rejected"), rejected);
  fill($("settings"), [], Object.entries(answer.settings).map(([name, value]) =>
    [element("th", name.replaceAll("_", " ")), element("td", value === null ? "–" : String(value))]));
  $("live").hidden = false;
}

function tile(name, text, size, limit) {
  const made = document.createElement("div"), value = element("dd", text);
  made.append(element("dt", name), value);
  if (limit) {
    const meter = document.createElement("meter");
    meter.max = limit;
    meter.value = size;
    value.append(element("small", ` of ${count(limit)}`, "quiet"), meter);
  }
  return made;
}

// The first line: the phase, and what is wrong. Below it, each finding with its time and what to do. A finding that has not lasted
// long enough for an alert is told, but does not change the first line.
function showState(now) {
  const findings = now.findings ?? [], firing = findings.filter((each) => !each.alert_at), calm = !firing.length;
  const isGood = now.phase === "running" && now.making_progress && calm, isStarting = now.phase === "initializing";
  const words = [element("span", now.phase, isGood ? "good" : isStarting && calm ? "quiet" : "bad")];
  if (!now.making_progress) words.push(element("span", ", but not making progress", "bad"));
  if (!calm) words.push(element("span", `, but ${inWords(firing[0])}`, "bad"));
  else if (now.reason) words.push(element("span", `: ${now.reason}`));
  else if (isGood) words.push(element("span", ", and nothing is wrong", "good"));
  $("state").replaceChildren(...words);
  $("findings").replaceChildren(...findings.map((each) => finding(each, now.time, each === firing[0])));
  const connections = `${count(now.connections)} connection${now.connections === 1 ? "" : "s"}`;
  $("about").textContent = [now.host, connections, clock(now.time)].filter(Boolean).join(" · ");
}

const inWords = ({what, detail}) => (detail ? `${what}: ${detail}` : what);

function finding(told, now, isInFirstLine) {
  const made = document.createElement("li"), since = new Date(told.since) / 1000;
  made.className = told.alert_at ? "quiet" : told.severity;
  const alert = told.alert_at ? `, alert at ${clock(new Date(told.alert_at) / 1000)}` : "";
  const time = `Since ${clock(since)}, ${duration(now - since)}${alert}. `;
  if (!isInFirstLine) made.append(element("strong", `${capital(inWords(told))}. `));
  made.append(element("span", time), ...told.do.split("`").map((part, i) => element(i % 2 ? "code" : "span", part)));
  return made;
}

function duration(seconds) {
  const [size, unit] = [[86400, "day"], [3600, "hour"], [60, "minute"], [0, "second"]].find(([least]) => seconds >= least) ?? [0, "second"];
  const many = Math.max(0, Math.floor(seconds / (size || 1)));
  return `${many} ${unit}${many === 1 ? "" : "s"}`;
}

function showLoss(error) {
  const since = latest ? ` These figures are from ${clock(latest.now.time)}.` : "";
  const {what, do: todo} = latest?.lost ?? {what: "the sidecar does not answer", do: ""};
  $("lost").textContent = `${capital(what)} (${error.message}). ${todo}${since} This page keeps trying.`;
  $("lost").hidden = false;
  document.body.classList.add("lost");
}

// A chart's points up to now. Where the sidecar was down, a point without a value leaves a gap in the line.
function points(column) {
  const made = [];
  for (const row of [...rows, latest.now]) {
    const before = made.at(-1);
    const x = new Date(1000 * row.time);
    if (before && x - before.x > 3000 * latest.every_seconds) made.push({x, y: null});
    made.push({x, y: row[column] ?? null});
  }
  return made;
}

function showCharts() {
  CHARTS.forEach(({column, title, about, ...axis}, i) => {
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
      const series = () => [{name: title, points: points(column)}];
      const axes = () => ({x: null, ...axis, time: true, from: new Date(1000 * (latest.now.time - LEAST_SHOWN_S))});
      redraw[i] = Charts.show(chart, `${title} over the last hours`, (width) => Charts.lines(width, series(), axes()));
    }
  });
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
}

// A checkpoint's row and, if it did not pass the gate or was taken back, a second row with the reason.
function checkpointRows(each, marks) {
  const name = element("th", each.name), published = new Date(each.created_at);
  for (const mark of marks) name.append(" ", element("span", mark, "mark"));
  const digest = element("td", String(each.sha256 ?? "–").slice(0, 16), "digest");
  digest.title = each.sha256 ?? "";
  const row = [
    name,
    element("td", each.gate?.replace("_", " ") ?? "–", each.gate === "stable" ? "good" : ["unstable", "incompatible", "rolled_back"].includes(each.gate) ? "bad" : "quiet"),
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
