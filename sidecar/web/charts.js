// The charts of the report and the live page. Each function returns a chart made by Plot; `Charts.show` puts it into an element
// and redraws it when the width changes. Colours are variables of style.css, so light, dark and print need no redrawing.
// Nothing here depends on colour alone: series differ in symbol and dash too.
"use strict";

const Charts = (() => {
  const COLOURS = [1, 2, 3, 4, 5, 6, 7].map((n) => `var(--series-${n})`);
  const SYMBOLS = ["circle", "triangle", "square", "diamond2", "star", "times", "plus"];
  const DASHES = ["none", "6 3", "2 2", "8 3 2 3"];
  const CROWD = "var(--text)";
  const EVENTS = {quiet: "plus", good: "circle", bad: "times"};
  const MARKERS = 14; // on each line, so that it can be told from the others
  const TIPPED = "tipped", TIPPED_ROW = "tipped-row"; // classes of marks with tips
  const TIP = {format: {stroke: false, fill: false, symbol: false}};
  const ROW_TIP = {format: {...TIP.format, y: false}};
  const STYLE = {background: "none", color: "inherit", fontSize: "12px", overflow: "visible"};

  // Draw a chart in an element, now and whenever its width changes. label: what a screen reader says instead of the chart;
  // make: a function from the width to the chart. Returns a function that redraws it. The tips of marks are shown, and said, with
  // the arrow keys too.
  function show(element, label, make) {
    let width = 0;
    const state = {at: -1}, said = document.createElement("div");
    said.className = "unseen";
    said.setAttribute("aria-live", "polite");
    const draw = () => {
      const chart = make(width), svg = svgOf(chart);
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", label);
      for (const part of svg.querySelectorAll("g[aria-label]")) part.setAttribute("role", "group"); // else it may have no name
      for (const style of chart.querySelectorAll("style")) style.remove(); // style.css has these; the live page allows no others
      element.replaceChildren(chart, said);
      withKeys(element, svg, said, state);
    };
    new ResizeObserver(() => {
      const now = Math.floor(element.clientWidth);
      if (now && now !== width) {
        width = now;
        requestAnimationFrame(draw); // drawing in here would change what is being observed
      }
    }).observe(element);
    return () => width && draw();
  }

  const svgOf = (chart) => (chart.localName === "svg" ? chart : chart.querySelector(":scope > svg"));

  // Let the arrow keys go through the marks that have tips, by their place on x, or row by row. Plot shows a tip where the pointer
  // is, so the pointer is said to be there. state: the place of the mark that is shown, -1 for none; it outlasts a redrawing.
  function withKeys(element, svg, said, state) {
    const marks = [...svg.querySelectorAll(`.${TIPPED} > *, .${TIPPED_ROW} > *`)];
    if (!marks.length) {
      for (const name of ["tabindex", "role", "aria-label"]) element.removeAttribute(name);
      element.onkeydown = element.onblur = null;
      return;
    }
    for (const [name, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", "Chart; the arrow keys go through its values"]]) {
      element.setAttribute(name, value);
    }
    const point = (type, {x = 0, y = 0}) => svg.dispatchEvent(new PointerEvent(type, {clientX: x, clientY: y, pointerType: "mouse"}));
    const middle = (mark) => {
      const {x, y, width, height} = mark.getBoundingClientRect();
      return {x: x + width / 2, y: y + height / 2, isRow: mark.parentNode.classList.contains(TIPPED_ROW)};
    };
    const inOrder = () => marks.map(middle).sort((a, b) => (a.isRow ? a.y - b.y || a.x - b.x : a.x - b.x || a.y - b.y));
    const last = marks.length - 1;
    const go = (to) => {
      state.at = Math.max(0, Math.min(last, to));
      point("pointermove", inOrder()[state.at]);
      const lines = [...svg.querySelectorAll("[aria-label=tip] text > tspan")].map((line) => line.textContent.replace("\u200b", "").trim());
      said.textContent = lines.filter((line) => line).join("; ");
    };
    element.onkeydown = (event) => {
      const {at} = state;
      const to = {
        ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last, PageDown: at + 10, PageUp: at - 10,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      go(to);
    };
    element.onblur = () => {
      state.at = -1;
      said.textContent = "";
      point("pointerleave", {});
    };
    if (state.at >= 0) go(state.at);
  }

  const plain = (value) => String(Number(value.toPrecision(5)));
  const height = (width) => Math.round(Math.max(220, Math.min(360, width * 0.5)));
  const ticks = (width) => Math.max(3, Math.floor(width / 90));
  // Colours and symbols that tell series apart, by index in names; rest: the name of a last series that combines all others.
  function scale(names, rest = []) {
    const domain = [...names, ...rest].map((_, i) => i);
    const colours = [...names.map((_, i) => COLOURS[i % COLOURS.length]), ...rest.map(() => "var(--quiet)")];
    const called = [...names, ...rest].map((name) => (name.length > 40 ? `${name.slice(0, 39)}…` : name));
    return {
      color: {type: "ordinal", domain, range: colours},
      symbol: {
        domain, range: domain.map((i) => SYMBOLS[i % SYMBOLS.length]), legend: domain.length > 1, tickFormat: (i) => called[i],
      },
    };
  }

  // A logarithmic axis for values from low to high: it begins and ends at a tick and has a few ticks, each with its label.
  function logAxis(low, high) {
    const decades = Math.log10(high / low), first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
    const digits = decades < 0.4 ? [1, 2, 3, 4, 5, 6, 7, 8, 9] : decades < 2 ? [1, 2, 5] : [1];
    const every = Math.max(1, Math.ceil((last - first) / 6)), all = [];
    for (let power = first; power < last + every + 1; power += every) {
      all.push(...digits.map((digit) => Number(`${digit}e${power}`)));
    }
    const from = Math.max(0, all.findLastIndex((tick) => tick <= low));
    const shown = all.slice(from, Math.max(from + 1, all.findIndex((tick) => tick >= high)) + 1);
    const isPlain = (tick) => tick >= 1e-5 && tick < 1e6;
    return {
      type: "log", domain: [shown[0], shown.at(-1)], ticks: shown,
      tickFormat: (tick) => (isPlain(tick) ? tick.toLocaleString("en", {maximumSignificantDigits: 1}) : tick.toExponential(0)),
    };
  }

  // The same for a linear axis. A value that never changes has some room around it, but not above most.
  function linearAxis(low, high, {zero, most}) {
    const room = Math.abs(low) / 10 || 1;
    const domain = low === high ? [zero ? Math.min(0, low) : low - room, Math.min(high + room, most)] : undefined;
    return {type: "linear", domain, zero, nice: true, ticks: 5};
  }

  // Values over time. series: [{name, points: [{x, y}]}]; null as y leaves a gap, and so does a value that has no logarithm.
  // zero: the axis begins at 0; most: no value can be higher; from: where the time axis begins at the latest.
  // events: [{x, name, gate, kind}], marked at the top; kind: good, bad or quiet.
  function lines(width, series, {x, y, log = false, time = false, zero = false, most = Infinity, from, events = []}) {
    const has = (point) => point && point.y !== null && (!log || point.y > 0);
    const drawn = series.filter(({points}) => points.some(has))
      .map(({name, points}) => ({name, points: points.map((point) => (has(point) ? point : {...point, y: null}))}));
    const values = drawn.flatMap(({points}) => points.filter(has).map((point) => point.y));
    const low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
    const marked = drawn.flatMap(({name, points}, i) => {
      const every = Math.max(1, Math.ceil(points.length / MARKERS)), shift = Math.floor((i * every) / drawn.length);
      const isAlone = (at) => !has(points[at - 1]) && !has(points[at + 1]); // a line of one point would not be seen
      return points.filter((point, at) => has(point) && ((at + shift) % every === 0 || isAlone(at)))
        .map((point) => ({...point, name, i}));
    });
    const axis = log && values.length ? logAxis(low, high) : linearAxis(low, high, {zero, most});
    const times = from && [from, ...series.flatMap(({points}) => [points[0].x, points.at(-1).x])].sort((a, b) => a - b);
    return Plot.plot({
      width, height: height(width), style: STYLE, marginLeft: 64, marginTop: 30, marginBottom: 40,
      ...scale(drawn.map(({name}) => name)),
      x: {label: x, ticks: ticks(width), type: time ? "time" : "linear", domain: times && [times[0], times.at(-1)]},
      y: {label: y, grid: true, ...axis},
      marks: [
        // Of a logarithmic axis, d3 leaves out labels where it would have few ticks itself.
        ...(axis.type === "log" ? [Plot.axisY(axis.ticks, {ticks: 1000, tickFormat: axis.tickFormat})] : []),
        ...Object.entries(EVENTS).flatMap(([kind, symbol]) => {
          const some = events.filter((event) => event.kind === kind), stroke = `var(--${kind})`;
          return [
            Plot.ruleX(some, {x: "x", stroke, strokeOpacity: 0.35}),
            Plot.dot(some, {
              x: "x", frameAnchor: "top", stroke, fill: "var(--background)", symbol, r: 4, channels: {checkpoint: "name", gate: "gate"}, tip: TIP,
              className: TIPPED,
            }),
          ];
        }),
        ...drawn.map(({points}, i) => Plot.line(points, {
          x: "x", y: "y", stroke: COLOURS[i % COLOURS.length], strokeWidth: 1.75, strokeDasharray: DASHES[i % DASHES.length],
        })),
        Plot.dot(marked, {x: "x", y: "y", stroke: "i", fill: "i", symbol: "i", r: 3, channels: {name: "name"}, tip: TIP, className: TIPPED}),
      ],
    });
  }

  // Pairs: a mark for each, or a shaded cell where many are in one place. points: [{x, y, group}], group: an index in groups, or
  // -1; groups: names; if there are more than seven, the first six are told apart and the others look the same. cells:
  // [{x1, x2, y1, y2, pairs}]. line: "diagonal", on a square with equal axes, or "zero" for residuals. xs, ys: further values
  // that the axes hold.
  function scatter(width, points, {x, y, line, groups = [], cells = [], xs = [], ys = []}) {
    const told = groups.length > COLOURS.length ? COLOURS.length - 1 : groups.length;
    const kind = ({group = 0}) => (group < 0 ? told : Math.min(group, told));
    const centres = cells.map((cell) => ({...cell, x: (cell.x1 + cell.x2) / 2, y: (cell.y1 + cell.y2) / 2}));
    // The others below, the first on top. The centres of cells are not seen, but have tips: two marks with tips would show two.
    const drawn = [...centres, ...points.toSorted((a, b) => kind(b) - kind(a))];
    const value = (axis) => (one) => (one.pairs ? `${plain(one[`${axis}1`])} to ${plain(one[`${axis}2`])}` : plain(one[axis]));
    const all = {x: [...points.map((point) => point.x), ...xs], y: [...points.map((point) => point.y), ...ys]};
    const isSquare = line === "diagonal", margins = {marginLeft: 64, marginRight: 20, marginTop: 20, marginBottom: 40};
    const size = isSquare ? Math.min(width, 480) : width;
    const range = around(isSquare ? [...all.x, ...all.y] : all.x), [from, to] = range;
    const dashed = {stroke: "currentColor", strokeDasharray: "4 3"}, halo = {stroke: "var(--background)", strokeWidth: 3};
    const right = (look) => (isSquare ? Plot.line([[from, from], [to, to]], look) : Plot.ruleY([0], look));
    const levels = levelsOf(cells);
    const chart = Plot.plot({
      width: size, height: isSquare ? size - 24 : height(width), style: STYLE, ...margins,
      ...(told > 1 ? scale(groups.slice(0, told), told < groups.length ? ["all others"] : []) : {}),
      x: {label: x, ticks: ticks(size), nice: !isSquare, domain: range},
      y: {label: y, grid: true, nice: !isSquare, ticks: isSquare ? ticks(size) : 5, domain: isSquare ? range : around([...all.y, 0])},
      marks: [
        ...levels.map(({least, most, fillOpacity}) => Plot.rect(cells.filter(({pairs}) => pairs >= least && pairs <= most), {
          x1: "x1", x2: "x2", y1: "y1", y2: "y2", fill: CROWD, fillOpacity,
        })),
        right(halo), right(dashed),
        Plot.dot(drawn, {
          x: "x", y: "y", ...(told > 1 ? {stroke: kind, symbol: kind} : {stroke: COLOURS[0]}), r: 2.5,
          strokeOpacity: {value: ({pairs}) => (pairs ? 0 : 0.7), scale: null}, className: TIPPED,
          channels: {
            [x]: {value: value("x"), label: x}, [y]: {value: value("y"), label: y}, pairs: "pairs",
            ...(told ? {group: ({pairs, group}) => (pairs ? undefined : groups[group] ?? "–")} : {}),
          },
          tip: {format: {...TIP.format, strokeOpacity: false, x: false, y: false}},
        }),
      ],
    });
    return levels.length ? withLegend(chart, levels) : chart;
  }

  // At most five shades for cells: the least and the most pairs of each, from a series of round numbers.
  function levelsOf(cells) {
    const most = cells.reduce((a, {pairs}) => Math.max(a, pairs), 0), least = cells.reduce((a, {pairs}) => Math.min(a, pairs), most);
    const round = [least];
    for (let power = 1; power <= most; power *= 10) round.push(...[1, 2, 5].map((digit) => digit * power).filter((n) => n > least && n <= most));
    const every = Math.ceil(round.length / 5), bounds = most ? round.filter((_, i) => i % every === 0) : [];
    return bounds.map((from, i) => ({
      least: from, most: i + 1 < bounds.length ? bounds[i + 1] - 1 : most, fillOpacity: 0.2 + (0.55 * (i + 1)) / bounds.length,
    }));
  }

  // The chart with a legend of the shades above it.
  function withLegend(chart, levels) {
    const isBare = chart.localName === "svg", svg = svgOf(chart);
    const made = (namespace, name, attributes, ...children) => {
      const one = document.createElementNS(namespace, name);
      for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
      one.append(...children);
      return one;
    };
    const html = document.documentElement.namespaceURI, size = {width: 14, height: 14};
    const whole = isBare ? made(html, "figure", {}, chart) : chart;
    whole.prepend(made(html, "div", {class: "cells-swatches-wrap"}, ...levels.map(({least, most, fillOpacity}) => {
      const shade = made(svg.namespaceURI, "rect", {...size, fill: CROWD, "fill-opacity": fillOpacity});
      const words = least === most ? `${least} pairs` : `${least} to ${most.toLocaleString("en")} pairs`;
      return made(html, "span", {class: "cells-swatch"}, made(svg.namespaceURI, "svg", {...size, "aria-hidden": true}, shade), words);
    })));
    return whole;
  }

  // A mean with its band, from and to, over each stretch of an axis. rows: [{low, high, mean, from, to, …}], from and to null
  // where there is no band; names: of further values of a row, for the tip.
  function means(width, rows, {x, y, names = []}) {
    const middle = ({low, high}) => (low + high) / 2;
    const shown = Object.fromEntries(names.map((name) => [name, name]));
    const banded = rows.filter(({from}) => from !== null);
    return Plot.plot({
      width, height: height(width), style: STYLE, marginLeft: 64, marginBottom: 40,
      x: {label: x, ticks: ticks(width), domain: around(rows.flatMap(({low, high}) => [low, high]))},
      y: {label: y, grid: true, nice: true, domain: around([0, ...rows.flatMap(({mean, from, to}) => [mean, from ?? mean, to ?? mean])])},
      marks: [
        Plot.ruleY([0], {stroke: "currentColor", strokeDasharray: "4 3"}),
        Plot.rect(banded, {x1: "low", x2: "high", y1: "from", y2: "to", fill: COLOURS[0], fillOpacity: 0.3, inset: 1}),
        Plot.dot(rows, {x: middle, y: "mean", fill: COLOURS[0], r: 3.5, channels: shown, tip: TIP, className: TIPPED}),
      ],
    });
  }

  // The lowest and the highest value, apart from each other.
  function around(values) {
    const low = Math.min(...values), high = Math.max(...values);
    return low < high ? [low, high] : [low - 1, high + 1];
  }

  // A bar for each row, in the given order, longest first. rows: [{name, value}].
  function bars(width, rows, {x}) {
    return Plot.plot({
      width, height: 60 + 20 * rows.length, style: STYLE, marginBottom: 40, marginLeft: margin(width, rows),
      x: {label: x, grid: true, ticks: ticks(width)},
      y: {label: null, domain: [...rows.keys()]},
      marks: [
        names(width, rows),
        Plot.barX(rows, {x: "value", y: (_, i) => i, fill: COLOURS[0], channels: {name: "name"}, tip: ROW_TIP, className: TIPPED_ROW}),
        Plot.ruleX([0], {stroke: "currentColor"}),
      ],
    });
  }

  // A value and its interval in each row; without low and high there is none. rows: [{name, value, low, high}].
  function intervals(width, rows, {x}) {
    const y = (_, i) => i;
    return Plot.plot({
      width, height: 60 + 24 * rows.length, style: STYLE, marginBottom: 40, marginLeft: margin(width, rows), marginRight: 30,
      x: {label: x, grid: true, ticks: ticks(width), nice: true},
      y: {label: null, type: "band", domain: [...rows.keys()]},
      marks: [
        names(width, rows),
        Plot.ruleX([0], {stroke: "currentColor", strokeDasharray: "4 3"}),
        Plot.ruleY(rows, {x1: "low", x2: "high", y, stroke: COLOURS[0], strokeWidth: 2}),
        Plot.dot(rows, {x: "value", y, fill: COLOURS[0], r: 4, channels: {name: "name"}, tip: ROW_TIP, className: TIPPED_ROW}),
      ],
    });
  }

  // Values in rows, one of each series. rows: [{name, values}], as many values as names of series.
  function dots(width, rows, {x, names: series}) {
    const told = series.slice(0, COLOURS.length);
    const all = rows.flatMap(({name, values}, row) => values.slice(0, told.length).map((value, i) => ({name, value, row, i})));
    return Plot.plot({
      width, height: 60 + 20 * rows.length, style: STYLE, marginBottom: 40, marginLeft: margin(width, rows), marginRight: 30,
      ...scale(told),
      x: {label: x, grid: true, ticks: ticks(width), nice: true},
      y: {label: null, type: "band", domain: [...rows.keys()]},
      marks: [
        names(width, rows),
        Plot.ruleX([0], {stroke: "currentColor", strokeDasharray: "4 3"}),
        Plot.dot(all, {
          x: "value", y: "row", stroke: "i", fill: "i", symbol: "i", r: 3.5, className: TIPPED_ROW,
          channels: {name: "name", of: ({i}) => told[i]}, tip: ROW_TIP,
        }),
      ],
    });
  }

  // Quantiles of each group in a row: a thin bar from 5 to 95 %, a thick one from 25 to 75 %, a tick at the median.
  // rows: [{name, quantiles: [5 %, 25 %, 50 %, 75 %, 95 %]}].
  // zero: whether 0 is on the axis.
  function spreads(width, rows, {x, zero = true}) {
    const at = (n) => (row) => row.quantiles[n];
    const y = (_, i) => i;
    return Plot.plot({
      width, height: 60 + 24 * rows.length, style: STYLE, marginBottom: 40, marginLeft: margin(width, rows),
      x: {label: x, grid: true, ticks: ticks(width), nice: true},
      y: {label: null, domain: [...rows.keys()]},
      marks: [
        names(width, rows),
        ...(zero ? [Plot.ruleX([0], {stroke: "currentColor", strokeDasharray: "4 3"})] : []),
        Plot.ruleY(rows, {x1: at(0), x2: at(4), y, stroke: COLOURS[0], strokeWidth: 2}),
        Plot.barX(rows, {
          x1: at(1), x2: at(3), y, fill: COLOURS[0], insetTop: 3, insetBottom: 3, className: TIPPED_ROW,
          channels: {name: "name", "5 %": at(0), median: at(2), "95 %": at(4)}, tip: ROW_TIP,
        }),
        Plot.tickX(rows, {x: at(2), y, stroke: "var(--background)", strokeWidth: 2.5}),
      ],
    });
  }

  // The margin on the left for the names of rows, and the names themselves, cut off where there is no more room.
  const margin = (width, rows) => 14 + Math.min(width * 0.35, 7.6 * Math.max(4, ...rows.map(({name}) => name.length)));
  const names = (width, rows) => Plot.axisY({
    label: null, tickFormat: (i) => rows[i].name, lineWidth: (margin(width, rows) - 12) / 12, textOverflow: "ellipsis-end",
  });

  return {show, lines, scatter, means, bars, intervals, dots, spreads};
})();
