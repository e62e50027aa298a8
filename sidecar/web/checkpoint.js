// The page of one checkpoint, and beside it of another one: its parent, if none is chosen. `checkpoint?NAME`, `checkpoint?NAME&NAME`.
"use strict";

const LEFT_OUT = new Set([
  "held_out", "feature_order", "features", "feature_mean", "feature_std", "sha256", "name", "onnx", "id", "created_at",
]);
const LONGEST = 200;

const versionName = (version) => `model_v${String(version).padStart(6, "0")}`;
const list = (value) => (Array.isArray(value) ? value : []);
const about = (name) => ask(`api/checkpoints/${encodeURIComponent(name)}`);

async function show() {
  const [name = "", chosen = ""] = location.search.slice(1).split("&").map(decodeURIComponent);
  $("name").textContent = name;
  document.title = `vmafx-sidecar: ${name}`;
  try {
    const [told, {checkpoints}] = await Promise.all([about(name), ask("api/checkpoints")]);
    const names = checkpoints.map((each) => each.name).filter((each) => each !== name);
    const parent = Number.isInteger(told.parent) ? versionName(told.parent) : "";
    const other = names.includes(chosen) ? chosen : names.includes(parent) ? parent : names[0] ?? "";
    showChoice(name, names, other, parent);
    showOne(told);
    showBoth(name, told, other, other ? await about(other) : null);
    $("content").hidden = false;
  } catch (error) {
    $("verdict").textContent = `${name || "A checkpoint without a name"} cannot be shown: ${error.message}.`;
    $("verdict").className = "bad";
  }
}

function showChoice(name, names, other, parent) {
  $("other").replaceChildren(...names.map((each) => {
    const option = element("option", each === parent ? `${each}, its parent` : each);
    option.value = each;
    option.selected = each === other;
    return option;
  }));
  $("other").disabled = !names.length;
  $("other").addEventListener("change", () => {
    location.search = `?${encodeURIComponent(name)}&${encodeURIComponent($("other").value)}`;
  });
}

function showOne(told) {
  const gate = told.rolled_back ? "taken back" : told.gate?.verdict ?? "–";
  const reason = told.rolled_back ?? told.gate?.reason ?? "";
  $("verdict").replaceChildren(
    element("span", String(gate), gateClass(told.rolled_back ? "rolled_back" : gate)), element("span", reason && `: ${reason}`),
  );
  const rows = list(told.gate?.compared).filter((row) => row !== null && typeof row === "object");
  const head = ["Model", "On", "Pairs", "RMSE", "Winsorized", "PLCC"];
  $("no-compared").hidden = rows.length > 0;
  const figures = [["rmse", "≤"], ["winsorized_rmse", "≤"], ["plcc", "≥"]];
  const line = (model, row, pairs, of) => [
    element("th", model), element("td", String(row.on)), element("td", pairs, "number"),
    ...figures.map((figure) => element("td", of(...figure), "number")),
  ];
  fill($("compared"), head.map((each, i) => element("th", each, ...(i > 1 ? ["number"] : []))), rows.flatMap((row) => [
    line(String(row.model), row, count(row.pairs), (name) => number(row[name], 5)),
    ...(row.limits ? [line("its limits", row, "", (name, sign) => (known(row.limits[name]) ? `${sign} ${number(row.limits[name], 5)}` : ""))] : []),
  ]));
  $("json").textContent = JSON.stringify(told, null, 2);
}

function showBoth(name, told, other, beside) {
  const isPair = (pair) => Array.isArray(pair) && pair.length === 2 && pair.every(Number.isFinite);
  const both = [[name, told], ...(beside ? [[other, beside]] : [])]
    .map(([title, each]) => [title, list(each.held_out).filter(isPair)]).filter(([, pairs]) => pairs.length);
  $("about-held-out").textContent = both.length
    ? "Held-out pairs at the time of publication, at most 200 of them, evenly spread over the scores." : "There are no held-out pairs.";
  for (const [title, pairs] of both) {
    const figure = document.createElement("figure"), chart = document.createElement("div");
    chart.className = "chart";
    figure.append(element("figcaption", title), chart);
    $("held-out").append(figure);
    const points = pairs.map(([predicted, score]) => ({x: score, y: predicted, group: -1}));
    Charts.show(chart, `${title}: predicted against true scores`, (width) =>
      Charts.scatter(width, points, {x: "true", y: "predicted", line: "diagonal"}));
  }
  if (!beside) return;
  const [own, others] = [flat(told), flat(beside)];
  const differing = [...new Set([...Object.keys(own), ...Object.keys(others)])].filter((key) => own[key] !== others[key]);
  $("no-differences").hidden = differing.length > 0;
  $("no-differences").textContent = `Nothing, from ${other}.`;
  fill($("differences"), ["Name", name, other].map((each) => element("th", each)), differing.map((key) => [
    element("th", key), ...[own, others].map((each) => element("td", key in each ? each[key] : "–")),
  ]));
}

// The plain values of a JSON, each with the path to it: "metrics.rmse".
function flat(value, path = "") {
  if (value === null || typeof value !== "object") return {[path]: String(value).slice(0, LONGEST)};
  if (Array.isArray(value)) return value.length && typeof value[0] === "object" ? {} : {[path]: value.join(", ").slice(0, LONGEST)};
  const parts = Object.entries(value).filter(([key]) => path || !LEFT_OUT.has(key));
  return Object.assign({}, ...parts.map(([key, each]) => flat(each, path ? `${path}.${key}` : key)));
}

show();
