// The live page: asks the sidecar for news every two seconds and shows them. Whatever the sidecar sends is shown only as text.
"use strict";

const POLL_MS = 2000, PATIENCE_MS = 5000, SHOWN_S = 6 * 3600, LEAST_SHOWN_S = 300;
const $ = (id) => document.getElementById(id);
const number = (value, digits = 4) =>
  value === null || value === undefined ? "–" : value.toLocaleString("en", {maximumSignificantDigits: digits});
const count = (value) => (value ?? 0).toLocaleString("en");
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

function showState(now) {
  const isGood = now.phase === "running" && now.making_progress, isStarting = now.phase === "initializing";
  const words = [element("span", now.phase, isGood ? "good" : isStarting ? "quiet" : "bad")];
  if (!now.making_progress) words.push(element("span", ", but not making progress", "bad"));
  if (now.reason) words.push(element("span", `: ${now.reason}`));
  const connections = `${count(now.connections)} connection${now.connections === 1 ? "" : "s"}`;
  words.push(element("span", ` · ${connections} · ${clock(now.time)}`, "quiet"));
  $("state").replaceChildren(...words);
}

function showLoss(error) {
  const since = latest ? ` These figures are from ${clock(latest.now.time)}.` : "";
  $("lost").textContent = `The sidecar does not answer (${error.message}).${since} This page keeps trying.`;
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
