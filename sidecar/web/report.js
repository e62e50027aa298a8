// Shows the document of sidecar/evaluation/document.py that report.py put into the page. All texts are set as text, never as markup.
"use strict";

(() => {
  const report = JSON.parse(document.getElementById("document").textContent);
  const {said, models, groups, differences, scores, worst, features, data, curve} = report;
  const [{judged}] = models; // of several, the first is what the others are compared with
  const KINDS = {base: "base model", live: "live", ema: "EMA"};

  const known = (value) => value !== undefined && value !== null;
  const fixed = (digits) => (value) => known(value) ? value.toFixed(digits) : "–";
  const plcc = fixed(5), rmse = fixed(3);
  const capital = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);
  const signed = (value) => known(value) ? `${value < 0 ? "−" : "+"}${rmse(Math.abs(value))}` : "–";
  const count = (value) => value.toLocaleString("en");
  const short = (value) => known(value) ? String(Number(value.toPrecision(5))) : "–";

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children); // texts become text nodes
    return made;
  }
  const paragraph = (text, kind = "") => element("p", {class: kind}, text);
  const columns = (...children) => element("div", {class: "columns"}, ...children);

  function figure(label, caption, make) {
    const chart = element("div", {class: "chart"});
    Charts.show(chart, label, make);
    return element("figure", {}, chart, element("figcaption", {}, caption));
  }

  // rows: arrays of cells; a column whose name begins with "#" holds numbers. A cell may be an element.
  function table(caption, names, rows) {
    const numeric = names.map((name) => name.startsWith("#"));
    const kind = (i) => (numeric[i] ? {class: "number"} : {});
    const head = names.map((name, i) => element("th", {scope: "col", ...kind(i)}, name.replace(/^#/, "")));
    const body = rows.map((row) => element("tr", {}, ...row.map((cell, i) => (
      i || numeric[0] ? element("td", kind(i), cell) : element("th", {scope: "row"}, cell)))));
    const made = element("table", {}, element("caption", {}, element("span", {}, caption)),
      element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
    // A table that scrolls can be reached with the keyboard.
    return element("div", {class: "scrolls", tabindex: "0", role: "group", "aria-label": caption}, made);
  }
  const behind = (summary, ...children) => element("details", {}, element("summary", {}, summary), ...children);
  // A table of many rows is folded away.
  const long = (caption, names, rows) => {
    const made = table(caption, names, rows);
    return rows.length > 30 ? behind(`${caption}, as a table`, made) : made;
  };
  const fields = (caption, values) => table(caption, ["name", "value"], Object.entries(values).map(([name, value]) => [
    name, value === null || value === "" ? "–" : String(value),
  ]));

  const tile = (name, value, kind = "") => element("div", {}, element("dt", {}, name), element("dd", {class: kind}, value));
  const groupNames = differences ? [] : groups.map(({group}) => group);
  const mark = ({validates, label}) => element("span", {class: validates ? "mark" : "mark bad"}, label);
  // What a section shows of each model; the name of the model is above it where there are several.
  const ofEach = (make) => (differences
    ? [columns(...models.map((model) => element("div", {}, element("h3", {}, model.name, " ", mark(model.judged)), ...make(model))))]
    : [columns(...make(models[0]))]);
  // The pairs of a scatter chart: cells where many are in one place, and points.
  function pairsOf({x: [x0, dx, nx], y: [y0, dy, ny], cells, points}) {
    const edges = ([i, j, pairs]) => ({x1: x0 + i * dx, x2: x0 + (i + 1) * dx, y1: y0 + j * dy, y2: y0 + (j + 1) * dy, pairs});
    return {
      points: points.map(([x, y, group]) => ({x, y, group})),
      shown: {cells: cells.map(edges), xs: [x0, x0 + nx * dx], ys: [y0, y0 + ny * dy], groups: groupNames},
    };
  }
  function howDrawn({x: [, dx], y: [, dy], cells, points, left_out: leftOut}) {
    const crowded = cells.length ? ` Where five pairs or more lie within ${short(dx)} by ${short(dy)} score points, the shade says how many.` : "";
    return crowded + (leftOut ? ` Of the ${count(points.length + leftOut)} other pairs, ${count(points.length)} are shown.` : "");
  }
  const gateKind = (gate) => (gate === "stable" ? "good" : ["unstable", "incompatible"].includes(gate) ? "bad" : "");
  const heading = (text) => element("h3", {}, text);
  // The figures of pairs that say what to expect on others, in large.
  const tiles = (found, ...more) => element("dl", {class: "tiles"},
    tile("PLCC", plcc(found.plcc)), tile("SROCC", plcc(found.srocc)), tile("RMSE, score points", rmse(found.rmse)),
    tile("pairs", count(found.pairs)), ...more);
  const figures = (found) => [
    plcc(found.plcc), plcc(found.srocc), rmse(found.rmse), rmse(found.winsorized_rmse), count(found.pairs)];
  const FIGURES = ["#PLCC", "#SROCC", "#RMSE", "#winsorized", "#pairs"];

  function besideBase() {
    if (!judged.base) return [];
    return [table(`Compared with the base model, on ${judged.what}`, ["", ...FIGURES], [
      ["base model", ...figures(judged.base)], ["trained", ...figures(judged)],
      ["change in RMSE", "", "", signed(judged.rmse - judged.base.rmse), "", ""],
    ])];
  }

  function crossValidated() {
    const {loso} = said, by = report.settings.group_by;
    return [
      heading("Cross-validated"),
      tiles(judged, tile("groups", count(report.n_groups))),
      paragraph(`Each group by ${by} was predicted by a model that was trained on the others: this is what to expect on a new ${by}. ` +
        `Over the groups, the mean PLCC is ${plcc(loso.mean_plcc)}, the lowest ${plcc(loso.min_plcc)}. The published model is ` +
        "another one, trained on pairs of all groups; its own figures follow."),
      ...besideBase(),
    ];
  }

  function published() {
    const rows = (place) => Object.entries(said.metrics[place] ?? {}).map(([kind, found]) => [KINDS[kind], ...figures(found)]);
    const {held_out: heldOut} = said.metrics;
    return [
      heading("The published model"),
      ...(heldOut && !said.loso ? [tiles(judged)] : []),
      columns(
        heldOut ? table("On held-out pairs, which were not trained on", ["weights", ...FIGURES], rows("held_out"))
          : paragraph("Nothing was held out, so no figure of the published model itself says how it does on other pairs.", "bad"),
        table("On its own training pairs: how well it fits them, no validation", ["weights", ...FIGURES], rows("train"))),
      paragraph("The EMA weights are what gets published.", "quiet"),
    ];
  }

  function evaluated() {
    const rest = said.not_trained_on;
    if (judged.validates) return [heading(capital(judged.what)), tiles(judged)];
    return [
      heading(rest ? "Pairs that the model was not trained on" : capital(judged.label)), ...(rest ? [tiles(rest)] : []),
      table("Figures on all pairs flatter the model, as it was trained on some of them", ["", ...FIGURES], [
        ...(rest ? [["not trained on", ...figures(rest)]] : []), ["all", ...figures(judged)]]),
    ];
  }

  const interval = (both) => (both ? `${signed(both[0])} to ${signed(both[1])}` : "–");

  function compared() {
    const [first, ...others] = models, isKnown = differences.some((each) => each.interval);
    const trainedOn = said.models.map(({trained_on: of}) => (of === true ? "some" : count(of ?? 0)));
    const rows = differences.map((each, i) => ({name: others[i].name, value: each.rmse_difference, low: each.interval?.[0], high: each.interval?.[1]}));
    return [
      ...(models.some((model) => !model.judged.validates) ? [paragraph("There are models that were trained on some of these pairs, " +
        "which flatters them. With --held-out, models are compared on pairs that none was trained on.", "bad")] : []),
      table(`On ${report.what}`, ["model", ...FIGURES, "#trained on"],
        models.map((model, i) => [model.name, ...figures(model.judged), trainedOn[i]])),
      table(`RMSE less that of ${first.name}, in score points: below 0 is better`,
        ["model", "verdict", "#difference", "#95 % interval", "#better in"],
        differences.map((each, i) => [others[i].name, each.in_words, signed(each.rmse_difference), interval(each.interval),
          known(each.better_in) ? `${(100 * each.better_in).toFixed(1)} %` : "–"])),
      ...(isKnown ? [figure(`RMSE less that of ${first.name}: ${differences.map((each, i) => `${others[i].name} ${signed(each.rmse_difference)}`).join(", ")}`,
        "The line is the 95 % interval of the difference.", (width) => Charts.intervals(width, rows, {x: "Difference of RMSE"}))] : []),
      paragraph(isKnown
        ? `Paired bootstrap: of the ${count(report.n_groups)} groups, as many were drawn ${count(report.resamples)} times, each time the ` +
          "same for all models. Interval and share are of the differences then. Pairs of one group resemble each other, so groups are " +
          "drawn, not pairs."
        : "There is no interval, since no groups are known, or too few.", "quiet"),
    ];
  }

  // What the gate compared: a table for each set of pairs, of this model, its limits and the models beside it.
  function gateTables({compared}) {
    const kinds = [["plcc", plcc, "≥"], ["rmse", rmse, "≤"], ["winsorized_rmse", rmse, "≤"]];
    const isLimited = ({limits}) => Object.keys(limits).length > 0;
    const isOver = (row, name) => known(row.limits[name]) && !(name === "plcc" ? row.plcc >= row.limits.plcc : row[name] <= row.limits[name]);
    const cell = (row, [name, shown]) => (isOver(row, name)
      ? element("span", {class: "bad"}, `${shown(row[name])} (too ${name === "plcc" ? "low" : "high"})`) : shown(row[name]));
    return [...new Set(compared.map((row) => row.on))].map((on) => {
      const rows = compared.filter((row) => row.on === on), [{pairs, verdict}] = rows;
      return table(`On ${on}${known(pairs) ? `, ${count(pairs)} pairs` : ""}${verdict ? `: ${verdict}` : ""}`, ["model", "#PLCC", "#RMSE", "#winsorized"],
        rows.flatMap((row) => [
          [row.model, ...kinds.map((kind) => cell(row, kind))],
          ...(isLimited(row) ? [["limit", ...kinds.map(([name, shown, sign]) => (known(row.limits[name]) ? `${sign} ${shown(row.limits[name])}` : "–"))]] : []),
        ]));
    });
  }

  const sections = {
    result() {
      if (differences) return compared();
      if (report.command === "evaluate") return evaluated();
      return [...(said.loso ? crossValidated() : []), ...published()];
    },

    gate() {
      const [{model, compared: rows}] = models;
      const verdict = said.gate?.verdict ?? model.gate, reason = said.gate?.reason ?? model["gate's reason"];
      if (!verdict || differences) return [];
      return [
        element("p", {}, element("span", {class: gateKind(verdict)}, verdict), reason ? `: ${reason}.` : "."),
        ...(rows.length ? [paragraph("What the gate compared, when the model was published:"), columns(...gateTables(models[0]))] : []),
      ];
    },

    training() {
      if (!curve || curve.length < 2) return [];
      const series = (place, value) => ["live", "ema"].map((kind) => ({
        name: KINDS[kind], points: curve.map((point) => ({x: point.step, y: value(point[place]?.[kind] ?? null)})),
      }));
      const last = curve.at(-1), {curve_pairs: measured} = report;
      const on = (place) => (measured[place] < said.pairs[place]
        ? `on ${count(measured[place])} of ${count(said.pairs[place])}` : `on all ${count(said.pairs[place])}`);
      const loss = (value) => value * value;
      const drawn = [figure(
        `Loss over ${last.step} steps: from ${short(loss(curve[0].train.ema))} to ${short(loss(last.train.ema))} (EMA)`,
        `Loss: mean squared error in score points squared, ${on("train")} training pairs. The axis is logarithmic.`,
        (width) => Charts.lines(width, series("train", loss), {x: "Steps", y: "Loss", log: true}))];
      if (last.held_out) {
        drawn.push(figure(
          `Held-out RMSE over ${last.step} steps: from ${rmse(curve[0].held_out.ema)} to ${rmse(last.held_out.ema)} (EMA)`,
          `RMSE in score points, ${on("held_out")} held-out pairs. The axis is logarithmic.`,
          (width) => Charts.lines(width, series("held_out", (value) => value), {x: "Steps", y: "RMSE", log: true})));
      }
      const cells = (point, place) => ["live", "ema"].map((kind) => rmse(point[place]?.[kind]));
      return [columns(...drawn),
        ...(last.held_out ? [] : [paragraph("There is no held-out RMSE, because --holdout was 0.", "quiet")]),
        behind("The same as a table", table("RMSE of live and EMA weights, in score points",
          ["#step", "#train live", "#train EMA", "#held out live", "#held out EMA"],
          curve.map((point) => [count(point.step), ...cells(point, "train"), ...cells(point, "held_out")])))];
    },

    predictions: () => ofEach(({judged: found, predicted}) => {
      const {points, shown} = pairsOf(predicted);
      const words = `PLCC ${plcc(found.plcc)}, SROCC ${plcc(found.srocc)}, RMSE ${rmse(found.rmse)}`;
      return [
        figure(`Predicted against true scores: ${words}`, `Predictions on the dashed line are right.${howDrawn(predicted)}`,
          (width) => Charts.scatter(width, points, {...shown, x: "True score", y: "Predicted score", line: "diagonal"})),
        ...(differences ? [] : [table(`On ${found.what}`, ["", "#value"], [
          ["PLCC, Pearson's correlation", plcc(found.plcc)], ["SROCC, Spearman's correlation", plcc(found.srocc)],
          ["RMSE, score points", rmse(found.rmse)], ["pairs", count(found.pairs)]])]),
      ];
    }),

    differences() {
      if (!differences || groups.length < 2) return [];
      const [first, ...others] = models, drawn = groups.slice(0, 30);
      const part = drawn.length < report.n_groups ? ` These are the ${drawn.length} of ${count(report.n_groups)} groups that differ most.` : "";
      const apart = (group) => others.map((_, i) => group.rmse[i + 1] - group.rmse[0]);
      const largest = apart(groups[0]).sort((a, b) => Math.abs(b) - Math.abs(a))[0];
      return [
        figure(`RMSE less that of ${first.name} in ${drawn.length} groups; the largest difference is ${signed(largest)}, for ${groups[0].group}`,
          `In score points; left of the dashed line a model is better than ${first.name}. The groups that differ most come first.${part}`,
          (width) => Charts.dots(width, drawn.map((group) => ({name: group.group, values: apart(group)})),
            {x: "Difference of RMSE", names: others.map(({name}) => name)})),
        long(groups.length < report.n_groups ? `The ${groups.length} groups that differ most` : "All groups",
          ["group", "#pairs", ...models.map(({name}, i) => `#${i ? "" : "RMSE of "}${name}`)],
          groups.map((group) => [group.group, count(group.pairs),
            ...group.rmse.map((value, i) => (i ? `${rmse(value)} (${signed(value - group.rmse[0])})` : rmse(value)))])),
      ];
    },

    groups() {
      if (differences || !groups.length) return [];
      const [most] = groups;
      const drawn = groups.slice(0, 30).map(({group, quantiles}) => ({name: group, quantiles}));
      const all = report.n_groups;
      const part = drawn.length < all ? ` These are the ${drawn.length} of ${count(all)} groups with the largest RMSE.` : "";
      const base = groups.some((row) => row.base_rmse !== undefined);
      return [
        figure(`Residuals of ${drawn.length} groups; the largest RMSE is ${rmse(most.rmse)}, for ${most.group}`,
          "Predicted minus true, in score points. Half of a group's pairs lie in the thick bar, nine out of ten in the thin " +
            `one, and the gap is the median. The group with the largest RMSE comes first.${part}`,
          (width) => Charts.spreads(width, drawn, {x: "Residual"})),
        long(groups.length < all ? `The ${groups.length} groups with the largest RMSE` : "All groups",
          ["group", "#pairs", "#PLCC", "#SROCC", "#RMSE", ...(base ? ["#base RMSE"] : []), "#mean residual", "#5 %", "#median",
            "#95 %"],
          groups.map((row) => [row.group, count(row.pairs), plcc(row.plcc), plcc(row.srocc), rmse(row.rmse),
            ...(base ? [rmse(row.base_rmse)] : []), signed(row.mean), ...[0, 2, 4].map((n) => signed(row.quantiles[n]))])),
      ];
    },

    pods() {
      const {sampled} = said;
      if (!sampled) return [];
      const bins = sampled.by_score.map(({read, kept}, i) => [`tenth ${i + 1}`, count(read), count(kept)]);
      return [
        paragraph(`Of ${count(sampled.read)} pairs that were read, ${count(sampled.kept)} were kept in the sample. Pods, codecs ` +
          "and tenths of the score range share it evenly, as far as each has so many pairs, so that rare ones stay in."),
        table("Figures are those of held-out pairs in the sample",
          ["pod", "#read", "#kept", "#mean score", "#held out", "#PLCC", "#RMSE", "#mean residual"],
          sampled.pods.map(({name, read, kept, mean_score, held_out: figures}) => [name, count(read), count(kept),
            rmse(mean_score), count(figures.pairs ?? 0), plcc(figures.plcc), rmse(figures.rmse), signed(figures.mean_residual)])),
        table("Pairs by true score, the lowest tenth of the range first", ["scores", "#read", "#kept"], bins),
        ...sampled.left_out.map((why) => paragraph(`Left out: ${why}`)),
      ];
    },

    scores() {
      if (differences) return [];
      const {residual} = report, {points, shown} = pairsOf(residual);
      const [most] = [...scores].sort((a, b) => b.rmse - a.rmse);
      const range = (row) => `${short(row.low)} to ${short(row.high)}`;
      const base = scores.some((row) => row.base_rmse !== undefined);
      return [columns(
        figure(`Residuals over true scores; the largest RMSE is ${rmse(most.rmse)}, from ${range(most)}`,
          `Predicted minus true, in score points. Predictions on the dashed line are right.${howDrawn(residual)}`,
          (width) => Charts.scatter(width, points, {...shown, x: "True score", y: "Residual", line: "zero"})),
        table("By true score", ["from", "#pairs", "#RMSE", ...(base ? ["#base RMSE"] : []), "#mean residual"],
          scores.map((row) => [range(row), count(row.pairs), rmse(row.rmse), ...(base ? [rmse(row.base_rmse)] : []),
            signed(row.mean)])))];
    },

    calibration: () => ofEach(({calibration}) => {
      const range = (row) => `${short(row.low)} to ${short(row.high)}`;
      const rows = calibration.map((row) => ({...row, from: row.band?.[0] ?? null, to: row.band?.[1] ?? null, "90 % band": interval(row.band)}));
      const [most] = [...rows].sort((a, b) => Math.abs(b.mean) - Math.abs(a.mean));
      const how = rows.some((row) => row.band)
        ? "The 90 % band is Student's, by the jackknife over groups, since pairs of one group resemble each other. One band in ten " +
          "misses by chance."
        : "There is no band, since no groups are known.";
      return [
        figure(`Mean residual by predicted score; the largest is ${signed(most.mean)}, where ${range(most)} is predicted`,
          `The mean of predicted minus true, in score points, of the pairs that are predicted to be there. ${how}`,
          (width) => Charts.means(width, rows, {x: "Predicted score", y: "Mean residual", names: ["pairs", "groups", "90 % band"]})),
        table("By predicted score", ["predicted", "#pairs", "#groups", "#mean residual", "#90 % band"],
          rows.map((row) => [range(row), count(row.pairs), count(row.groups), signed(row.mean), interval(row.band)])),
      ];
    }),

    worst() {
      if (differences) return [];
      const grouped = groups.length > 0;
      const rows = worst.map((row) => [row.job_id || `pair ${count(row.number)}`, ...(grouped ? [row.group] : []),
        rmse(row.true), rmse(row.predicted), signed(row.residual)]);
      const names = ["job", ...(grouped ? ["group"] : []), "#true", "#predicted", "#residual"];
      const unnamed = paragraph("Pairs without a job_id are numbered from 1, in the order in which they were read.", "quiet");
      const listed = table("The pairs with the largest residuals (at most twenty)", names, rows);
      return worst.every((row) => row.job_id) ? [listed] : [listed, unnamed];
    },

    features() {
      if (differences) return [];
      const largest = features.slice(0, 20).map(({name, importance}) => ({name, value: importance}));
      const all = data.n_features;
      const n = report.importance_pairs;
      const measured = n < judged.pairs ? `, measured on ${count(n)} of the ${count(judged.pairs)} pairs judged` : "";
      const cut = features.length < all ? ` These are the ${features.length} most important of ${count(all)} features.` : "";
      return [
        figure(`Importance of ${largest.length} features; the most important is ${largest[0].name}`,
          "How much the RMSE grows, in score points, when one feature's values are exchanged between pairs: the mean " +
            `of five permutations${measured}. Features that carry the same information can replace each other, so each ` +
            "of them seems less important.",
          (width) => Charts.bars(width, largest, {x: "Growth in RMSE"})),
        behind("Importance and range of all features", table(`Ranges are those of all pairs.${cut}`,
          ["feature", "#growth in RMSE", "#lowest", "#mean", "#highest"],
          features.map((row) => [row.name, signed(row.importance), short(row.min), short(row.mean), short(row.max)]))),
      ];
    },

    intervals() {
      const {intervals} = said;
      if (!intervals) return [];
      const {predicted, half_widths: widths, coverage} = intervals;
      const levels = Object.keys(widths).map((level) => ({level, name: `${short(100 * level)} %`}));
      const series = levels.map(({level, name}) => ({name, points: predicted.map((x, i) => ({x, y: widths[level][i]}))}));
      const ranges = levels.map(({level, name}) => `${name} from ${rmse(Math.min(...widths[level]))} to ${rmse(Math.max(...widths[level]))}`);
      const drawn = figure(`Half-widths of prediction intervals, in score points: ${ranges.join(", ")}`,
        "How far the true score may be from the predicted one, either way, in score points, for this share of the pairs to be covered.",
        (width) => Charts.lines(width, series, {x: "Predicted score", y: "Half-width", zero: true}));
      const rows = levels.map(({level, name}) => {
        const {covered, by_group: byGroup, lowest, width, pairs} = coverage?.[level] ?? {};
        return [name, rmse(covered), rmse(byGroup), rmse(lowest), rmse(width), count(pairs ?? 0)];
      });
      return [
        paragraph(`Made from ${report.intervals_from}.`),
        columns(drawn, ...(coverage ? [table("Share of these pairs that is covered: of all, and as the mean and the lowest of the groups' shares",
          ["interval", "#covered", "#by group", "#lowest", "#width", "#pairs"], rows)] : [])),
        behind("The same as a table", table("Half-widths, in score points", ["#predicted score", ...levels.map(({name}) => `#${name}`)],
          predicted.map((score, i) => [short(score), ...levels.map(({level}) => rmse(widths[level][i]))]))),
      ];
    },

    settings: () => [fields("The options of this run, including defaults", report.settings)],

    data() {
      const {true_score: score} = data;
      const part = data.files.length < data.n_files ? `The first ${data.files.length} of ${data.n_files} files` : "Files";
      return [
        table(part, ["file", "#pairs", "#bytes", "SHA-256"], data.files.map((file) => [
          file.path === "-" ? "standard input" : file.path, count(file.pairs),
          file.bytes === undefined ? "–" : count(file.bytes), element("span", {class: "digest"}, file.sha256 ?? "–")])),
        paragraph(`${count(data.pairs)} pairs of ${count(data.n_features)} features; true scores from ${short(score.min)} to ` +
          `${short(score.max)}, mean ${short(score.mean)}.` +
          (said.metrics ? ` ${count(said.pairs.train)} were trained on, ${count(said.pairs.held_out)} were held out.` : "")),
        ...(data.skipped ? [paragraph(`Bad rows skipped: ${count(data.skipped)}; the first: ${data.first_skipped}`)] : []),
      ];
    },

    model: () => [
      ...models.map(({model}) => fields("The model file, and what its JSON says about it", model)),
      ...(said.metrics ? [paragraph(`It was trained for ${said.seconds.toFixed(1)} s, at ` +
        `${count(Math.round(said.pairs_per_second))} pairs per second. In onnxruntime its scores differ by ` +
        `${said.parity_max_abs_diff.toPrecision(2)} score points at most.`)] : []),
    ],
  };

  const title = `${report.command}: ${models.map(({name}) => name).join(", ")}`;
  document.title = title;
  document.querySelector("h1").textContent = title;
  document.getElementById("about").textContent = `vmafx-sidecar ${report.version}, ${report.written_at}`;
  const links = document.querySelector("nav ul");
  for (const [name, make] of Object.entries(sections)) {
    const section = document.getElementById(name), shown = make();
    if (!shown.length) {
      section.remove();
      continue;
    }
    section.append(...shown);
    links.append(element("li", {}, element("a", {href: `#${name}`}, section.querySelector("h2").textContent)));
  }

  // What shows single pairs says beside its title which pairs they are.
  for (const name of differences ? [] : ["predictions", "groups", "scores", "calibration", "worst", "features"]) {
    document.querySelector(`#${name} h2`)?.append(" ", mark(judged));
  }

  // Folded parts are unfolded for printing.
  let unfolded = [];
  addEventListener("beforeprint", () => {
    unfolded = [...document.querySelectorAll("details:not([open])")];
    for (const each of unfolded) each.open = true;
  });
  addEventListener("afterprint", () => {
    for (const each of unfolded) each.open = false;
  });
})();
