// What the live page and the page of a checkpoint have in common. Whatever the sidecar sends is shown only as text.
"use strict";

const PATIENCE_MS = 5000;
const $ = (id) => document.getElementById(id);
const known = (value) => value !== null && value !== undefined;
const count = (value) => (value ?? 0).toLocaleString("en");
const capital = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);
const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString();

// A figure; what is nearly 1 is not shown as 1.
function number(value, digits = 4) {
  if (!known(value)) return "–";
  if (value > 0.999 && value < 1) return Math.min(value, 0.999999).toFixed(6);
  return value.toLocaleString("en", {maximumSignificantDigits: digits});
}

function bytes(value) {
  const [size, unit] = [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "KB"]].find(([least]) => value >= least) ?? [1, "bytes"];
  return `${number(value / size, 3)} ${unit}`;
}

function duration(seconds) {
  const [size, unit] = [[86400, "day"], [3600, "hour"], [60, "minute"]].find(([least]) => seconds >= least) ?? [1, "second"];
  const many = Math.max(0, Math.floor(seconds / size));
  return `${many} ${unit}${many === 1 ? "" : "s"}`;
}

function element(name, text, ...classes) {
  const made = document.createElement(name);
  made.textContent = text;
  made.classList.add(...classes);
  return made;
}

// head: names of columns, or none; lines: the cells of each row. On a narrow screen each cell is shown below its column's name.
function fill(table, head, lines) {
  const row = (cells) => {
    const made = document.createElement("tr");
    made.append(...cells);
    return made;
  };
  table.replaceChildren();
  if (lines.length && head.length) {
    table.createTHead().append(row(head));
    for (const cells of lines) cells.filter(({colSpan}) => colSpan === 1).forEach((cell, i) => (cell.dataset.column = head[i].textContent));
  }
  table.createTBody().append(...lines.map(row));
}

const gateClass = (gate) =>
  gate === "stable" ? "good" : ["unstable", "incompatible", "rolled_back"].includes(gate) ? "bad" : "quiet";

async function ask(path) {
  const answer = await fetch(path, {signal: AbortSignal.timeout(PATIENCE_MS), cache: "no-store"});
  if (!answer.ok) throw new Error(`answered ${answer.status}`);
  return answer.json();
}
