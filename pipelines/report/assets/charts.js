// The charts, drawn with Observable Plot from the page's data. Each takes the width that it has and gives an element.
"use strict";
const charts = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const number = new Intl.NumberFormat("en");
  const size = new Intl.NumberFormat("en", {notation: "compact", maximumFractionDigits: 1});
  const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "–");
  const counted = (count, what) => `${number.format(count)} ${what}${count === 1 ? "" : "s"}`;
  const quiet = "var(--quiet)";

  // Room for the longest name on the left; longer ones are cut.
  const shorten = (name, most) => (name.length > most ? name.slice(0, most - 1) + "…" : name);
  const letters = (width) => (width < 480 ? 13 : 26);
  const room = (names, width) => 14 + 7 * Math.min(letters(width), Math.max(1, ...names.map((name) => name.length)));

  function bars(width, rows, kinds, colours, options = {}) {
    const names = rows.map((row) => row.name);
    const parts = rows.flatMap((row) => kinds.map((kind) => ({name: row.name, kind, value: row[kind]})));
    const left = room(names, width);
    return legended(kinds, colours, Plot.plot({
      width,
      height: 34 + 24 * rows.length,
      marginLeft: left,
      marginRight: 56,
      marginTop: 4,
      marginBottom: 26,
      x: {label: null, ticks: Math.max(2, Math.round(width / 130)), tickFormat: options.tick ?? ((x) => size.format(x)), grid: true},
      y: {label: null, domain: names, tickSize: 0, tickFormat: (name) => shorten(name, letters(width))},
      color: {domain: kinds, range: colours},
      marks: [
        Plot.barX(parts.filter((part) => part.value > 0), Plot.stackX({x: "value", y: "name", fill: "kind", order: kinds, insetTop: 3, insetBottom: 3,
          title: (part) => `${part.name}: ${part.kind} ${(options.show ?? number.format)(part.value)}`})),
        Plot.text(rows, {x: (row) => d3.sum(kinds, (kind) => row[kind]), y: "name", text: (row) => row.told ?? (options.show ?? number.format)(d3.sum(kinds, (kind) => row[kind])),
          textAnchor: "start", dx: 6, fill: quiet}),
      ],
    }));
  }

  function legended(kinds, colours, plot) {
    if (kinds.length < 2) return plot;
    const box = document.createElement("div");
    const list = document.createElement("ul");
    list.className = "legend";
    kinds.forEach((kind, place) => {
      const item = document.createElement("li");
      const spot = document.createElement("i");
      spot.style.background = colours[place];
      item.append(spot, kind);
      list.append(item);
    });
    box.append(plot, list);
    return box;
  }

  function funnel(width) {
    const kinds = ["left", "dropped", "duplicate", "failed", "undone"];
    const colours = ["kept", "dropped", "duplicate", "failed", "undone"].map((name) => `var(--${name})`);
    const start = {name: "source", left: data.funnel.images, dropped: 0, duplicate: 0, failed: 0, undone: 0};
    const steps = data.funnel.steps.filter((step) => step.dropped + step.duplicate + step.failed + step.undone > 0);
    const end = {...start, name: "kept", left: data.funnel.steps.at(-1)?.left ?? data.funnel.images};
    const rows = [start, ...steps.map((step) => ({...step, name: step.step})), end];
    rows.forEach((row) => (row.told = number.format(row.left)));
    return bars(width, rows, kinds, colours);
  }

  function classes(width) {
    const most = data.labels.classes.slice(0, 40);
    const rows = most.map((each) => ({name: each.name, labels: each.boxes}));
    return bars(width, rows, ["labels"], ["var(--accent)"]);
  }

  function histogram(width, rects, label, marks = [], options = {}) {
    return Plot.plot({
      width,
      height: options.height ?? 220,
      marginLeft: 48,
      marginRight: 12,
      marginBottom: 42,
      x: {label, labelOffset: 36, labelArrow: "none", labelAnchor: "center", ...options.x},
      y: {label: null, grid: true, ticks: 4, tickFormat: (y) => size.format(y), ...options.y},
      marks: [Plot.ruleY([0], {stroke: "var(--line)"}), ...rects, ...marks],
    });
  }

  function sizes(width, chosen) {
    const {classes: all, edges} = data.labels;
    const counts = chosen === "" ? edges.slice(1).map((_, place) => d3.sum(all, (each) => each.sizes[place])) : all[chosen].sizes;
    const bins = counts.map((count, place) => ({count, from: edges[place], to: edges[place + 1]}));
    const limits = [32, 96].filter((limit) => limit > edges[0] && limit < edges[edges.length - 1]);
    return histogram(width,
      [Plot.rect(bins, {x1: "from", x2: "to", y1: 0, y2: "count", fill: "var(--accent)", insetLeft: .5, insetRight: .5,
        title: (bin) => `${bin.from} to ${bin.to} px: ${number.format(bin.count)}`})],
      "√(width · height) in pixels",
      [Plot.ruleX(limits, {stroke: quiet, strokeDasharray: "3,3"}),
        Plot.text(limits, {x: (limit) => limit, text: (limit) => `${limit} px`, frameAnchor: "top", textAnchor: "start", dx: 4, fill: quiet})],
      {x: {type: "log", domain: [edges[0], edges[edges.length - 1]], ticks: edges.filter((_, place) => place % 2 === 0), tickFormat: (x) => String(Math.round(x))}, height: 200});
  }

  function perImage(width) {
    const pairs = data.labels.per_image;
    const rects = [Plot.rect(pairs, {x1: (pair) => pair[0] - .5, x2: (pair) => pair[0] + .5, y1: 0, y2: (pair) => pair[1], fill: "var(--accent)",
      insetLeft: .5, insetRight: .5, title: (pair) => `${counted(pair[0], "label")}: ${counted(pair[1], "image")}`})];
    return histogram(width, rects, "labels", [], {height: 160, x: {ticks: Math.min(12, pairs.length), tickFormat: (x) => (Number.isInteger(x) ? String(x) : "")}});
  }

  // Counts of one score, of all objects or of one class.
  function scoreOf(place, chosen) {
    const score = data.scores[place];
    const one = chosen === "" || !score.classes?.length ? score : score.classes[chosen];
    return {...score, counts: one.counts, best: one.best};
  }

  function scores(width, place, chosen, threshold) {
    const score = scoreOf(place, chosen);
    const bins = score.counts.map((count, index) => ({count, from: score.start + index * score.width, to: score.start + (index + 1) * score.width}));
    const inside = (bin) => bin.from >= threshold - score.width / 1e3;
    return histogram(width,
      [Plot.rect(bins, {x1: "from", x2: "to", y1: 0, y2: "count", fill: (bin) => (inside(bin) ? "var(--accent)" : "var(--other)"),
        insetLeft: .25, insetRight: .25, title: (bin) => `${show(bin.from)} to ${show(bin.to)}: ${number.format(bin.count)}`})],
      `${score.name} (heights by square root)`,
      [Plot.ruleX([threshold], {stroke: "var(--ink)", strokeWidth: 1.5}),
        ...(score.threshold == null ? [] : [Plot.ruleX([score.threshold], {stroke: quiet, strokeDasharray: "3,3"}),
          Plot.text([score.threshold], {x: (x) => x, text: (x) => `the pipeline: ${show(x)}`, frameAnchor: "top", dy: -14, fill: quiet})])],
      {height: 260, x: {nice: false}, y: {type: "sqrt"}});
  }

  const show = (value) => String(+value.toPrecision(4));

  // What a threshold would keep, in words. Exact: thresholds are edges of bins.
  function verdict(place, chosen, threshold) {
    const score = scoreOf(place, chosen);
    const from = Math.round((threshold - score.start) / score.width);
    const kept = d3.sum(score.counts.slice(Math.max(0, from)));
    const count = d3.sum(score.counts);
    const text = `${number.format(kept)} of ${number.format(count)} ${score.of} have at least ${show(threshold)} (${percent(kept, count)})`;
    if (!score.best) return `${text}; ${number.format(count - kept)} have less.`;
    const images = d3.sum(score.best.slice(Math.max(0, from)));
    return `${text}, in ${number.format(images)} of ${counted(score.images, "image")}.`;
  }

  function speed(width) {
    const rows = data.speed.steps.map((step) => ({name: step.step, "in the model": step.infer, "waiting for images": step.wait, other: step.other}));
    const time = (seconds) => (seconds < 10 ? `${seconds.toFixed(1)} s` : seconds < 600 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`);
    return bars(width, rows, ["in the model", "waiting for images", "other"], ["var(--accent)", "var(--dropped)", "var(--other)"], {show: time, tick: time});
  }

  function quality(width) {
    const rows = data.quality.classes.slice(0, 60).map((each) => ({...each, told: `${each.right} of ${each.right + each.missed}`}));
    return bars(width, rows, ["right", "wrong", "missed"], ["var(--kept)", "var(--failed)", "var(--dropped)"]);
  }

  const hue = (place) => `hsl(${(place * 137.508) % 360} 62% var(--light))`;
  const outcomes = ["kept", "dropped", "duplicate", "failed", "undone"];

  const clusterName = (cluster) => (cluster < 0 ? "in none" : [cluster, data.cluster_names[cluster]].filter((part) => part !== "" && part != null).join(" "));

  function map(width, place, by, onPoint) {
    const {points} = data.maps[place];
    const name = (point) => (point[by] === null ? "–" : by === "cluster" ? clusterName(point[by]) : String(point[by]));
    const frequent = d3.rollups(points, (group) => group.length, name).sort((a, b) => b[1] - a[1] || d3.ascending(a[0], b[0])).map(([key]) => key);
    const names = by === "outcome" ? outcomes.filter((each) => frequent.includes(each)) : frequent;
    const colours = names.map((each, index) => (by === "outcome" ? `var(--${each})` : each === "in none" || each === "–" ? "var(--other)" : hue(index)));
    const shown = names.slice(0, 14);
    const plot = Plot.plot({
      width,
      height: Math.min(560, Math.max(300, width * .62)),
      margin: 8,
      x: {axis: null},
      y: {axis: null},
      color: {domain: names, range: colours},
      marks: [
        Plot.dot(points, {x: "x", y: "y", fill: name, r: points.length > 400 ? 3.5 : points.length > 100 ? 4.5 : 6, fillOpacity: .8}),
        Plot.dot(points, Plot.pointer({x: "x", y: "y", stroke: "var(--ink)", r: 7, strokeWidth: 1.5, maxRadius: 30})),
      ],
    });
    plot.addEventListener("input", () => onPoint(plot.value, plot.value && name(plot.value)));
    return legended(shown, colours.slice(0, 14), plot);
  }

  return {data, funnel, classes, sizes, per_image: perImage, scores, verdict, speed, quality, map};
})();
