"use strict";
// Shows photos at any of the thresholds that the page holds, and what a point attends to. The data: see explore.py.
(() => {
  const $ = (id) => document.getElementById(id);
  const photos = [...document.querySelectorAll("script.photo")].map((block) => JSON.parse(block.textContent));
  const STEPS = Number(document.body.dataset.steps);
  const INSET = 10; // px from the slider's ends to its extreme values: half a thumb
  const MARGIN = 22; // px on the right of chart and slider, for numbers
  const state = { photo: 0, tau: 0, level: 0, point: { u: 0.5, v: 0.5 }, hover: null, pinned: false };
  let now = null; // what is decoded of the photo

  // --- data ----------------------------------------------------------------------------------------------------------

  async function unpacked(text, Type) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Type(await new Response(stream).arrayBuffer());
  }

  async function decoded(photo) {
    const [h, w] = photo.size;
    const [labels, colours, ...maps] = await Promise.all([
      unpacked(photo.labels, Uint8Array),
      unpacked(photo.colours, Uint8Array),
      ...photo.levels.flatMap((level) => [unpacked(level.steps, Uint8Array), unpacked(level.peaks, Float32Array)]),
    ]);
    let from = 0;
    const palettes = photo.counts.map((count) => {
      const palette = new Uint32Array(count);
      for (let k = 0; k < count; k++, from++) {
        const [r, g, b] = colours.subarray(3 * from, 3 * from + 3);
        palette[k] = (255 << 24) | (b << 16) | (g << 8) | r;
      }
      return palette;
    });
    const finest = photo.levels[0].size;
    const levels = photo.levels.map((level, i) => ({
      ...level, steps: maps[2 * i], peaks: maps[2 * i + 1],
      down: between(level.size[0], finest[0]), across: between(level.size[1], finest[1]),
    }));
    return { photo, h, w, palettes, levels, labels: photo.counts.map((_, i) => labels.subarray(i * h * w, (i + 1) * h * w)) };
  }

  // For linear interpolation from n to m places, half-pixel centres: the two neighbours and the second one's weight.
  function between(n, m) {
    return Array.from({ length: m }, (_, i) => {
      const x = Math.min(Math.max(((i + 0.5) * n) / m - 0.5, 0), n - 1);
      const low = Math.floor(x);
      return [low, Math.min(low + 1, n - 1), x - low];
    });
  }

  // --- attention -----------------------------------------------------------------------------------------------------

  const nearest = (places, x) => places.reduce((best, p, i) => (Math.abs(p - x) < Math.abs(places[best] - x) ? i : best), 0);

  // The map of one resolution at a point (u, v in 0..1 of the photo): values and the position that it is of.
  function mapAt(level, { u, v }) {
    const [h, w] = level.size;
    const i = nearest(level.rows, Math.floor(v * h)), j = nearest(level.columns, Math.floor(u * w));
    const index = i * level.columns.length + j;
    const values = new Float32Array(h * w), first = index * h * w;
    for (let k = 0; k < values.length; k++) values[k] = (level.steps[first + k] / STEPS) ** 2 * level.peaks[index];
    return { values, size: level.size, row: level.rows[i], column: level.columns[j] };
  }

  // The paper's equation 1: each map enlarged to the finest resolution, made to sum to its share of R, and added.
  function aggregated(maps) {
    const [h, w] = now.levels[0].size, total = new Float32Array(h * w);
    now.levels.forEach((level, l) => {
      const part = new Float32Array(h * w), { values } = maps[l], width = level.size[1];
      let sum = 0;
      for (let y = 0, k = 0; y < h; y++) {
        const [top, below, dy] = level.down[y];
        for (let x = 0; x < w; x++, k++) {
          const [left, right, dx] = level.across[x];
          const upper = values[top * width + left] * (1 - dx) + values[top * width + right] * dx;
          const lower = values[below * width + left] * (1 - dx) + values[below * width + right] * dx;
          sum += part[k] = upper * (1 - dy) + lower * dy;
        }
      }
      if (sum > 0) for (let k = 0; k < total.length; k++) total[k] += (part[k] * level.share) / sum;
    });
    return { values: total, size: [h, w], row: maps[0].row, column: maps[0].column };
  }

  function attention(point) {
    const maps = now.levels.map((level) => mapAt(level, point));
    return maps.length > 1 ? [aggregated(maps), ...maps] : maps;
  }

  const STOPS = [[13, 8, 35], [87, 28, 112], [190, 55, 84], [246, 140, 50], [252, 246, 178]];
  const RAMP = Uint32Array.from({ length: 256 }, (_, i) => {
    const x = (i / 255) * (STOPS.length - 1), k = Math.min(Math.floor(x), STOPS.length - 2);
    const [r, g, b] = STOPS[k].map((c, n) => Math.round(c + (STOPS[k + 1][n] - c) * (x - k)));
    return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  });

  // The square root of each value relative to the largest, in colour, a pixel each.
  function paint(canvas, { values, size: [h, w] }) {
    if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
    const context = canvas.getContext("2d"), picture = context.createImageData(w, h);
    const out = new Uint32Array(picture.data.buffer);
    let peak = 1e-30;
    for (let k = 0; k < values.length; k++) if (values[k] > peak) peak = values[k];
    for (let k = 0; k < out.length; k++) out[k] = RAMP[Math.round(Math.sqrt(values[k] / peak) * 255)];
    context.putImageData(picture, 0, 0);
  }

  // --- segments ------------------------------------------------------------------------------------------------------

  function drawSegments() {
    const labels = now.labels[state.tau], palette = now.palettes[state.tau], areas = new Uint32Array(palette.length);
    const out = new Uint32Array(now.tint.data.buffer);
    for (let k = 0; k < out.length; k++) {
      out[k] = palette[labels[k]];
      areas[labels[k]]++;
    }
    now.areas = areas;
    $("tint").getContext("2d").putImageData(now.tint, 0, 0);
  }

  function drawLines() {
    const labels = now.labels[state.tau], { h, w } = now, out = new Uint32Array(now.edges.data.buffer).fill(0);
    const thick = Math.max(1, Math.round(Math.max(h, w) / 400));
    for (let step = 1; step <= thick; step++) {
      for (let k = step * w; k < out.length; k++) if (labels[k] !== labels[k - step * w]) out[k] = 0xffffffff;
      for (let y = 0; y < h; y++) {
        for (let x = step, k = y * w + step; x < w; x++, k++) if (labels[k] !== labels[k - step]) out[k] = 0xffffffff;
      }
    }
    $("lines").getContext("2d").putImageData(now.edges, 0, 0);
  }

  // --- words ---------------------------------------------------------------------------------------------------------

  const number = (x) => Number(x.toPrecision(3)).toString();
  const plural = (n) => `${n} segment${n === 1 ? "" : "s"}`;

  function tellThreshold() {
    const { photo } = now, count = photo.counts[state.tau], tau = number(photo.thresholds[state.tau]);
    $("count").textContent = plural(count);
    $("value").textContent = tau;
    $("tau").value = state.tau;
    $("tau").setAttribute("aria-valuetext", `${tau} nats, ${plural(count)}`);
    $("stage").setAttribute("aria-label", `${photo.name}, ${plural(count)}`);
  }

  function tellPlace() {
    const { u, v } = state.hover || state.point, { photo, h, w } = now;
    const label = now.labels[state.tau][Math.min(Math.floor(v * h), h - 1) * w + Math.min(Math.floor(u * w), w - 1)];
    const share = (100 * now.areas[label]) / (h * w);
    const name = photo.names ? `${photo.names[state.tau][label]}: ` : "";
    $("where").textContent = `${name}segment ${label + 1} of ${photo.counts[state.tau]}, ${share.toFixed(share < 1 ? 2 : 1)} % of the photo`;
  }

  // --- chart ---------------------------------------------------------------------------------------------------------

  function svg(name, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // Where a threshold lies on the slider: an index, with a fraction.
  function indexOf(tau) {
    const taus = now.photo.thresholds, i = Math.max(taus.findIndex((t) => t >= tau), 1);
    if (taus.length < 2) return 0;
    return i - 1 + (Math.log(tau) - Math.log(taus[i - 1])) / (Math.log(taus[i]) - Math.log(taus[i - 1]));
  }

  function chartScales() {
    const width = ($("chart").clientWidth || 320) - MARGIN, height = $("chart").clientHeight || 150, { photo } = now;
    const last = Math.max(photo.thresholds.length - 1, 1), most = Math.max(...photo.counts, 2), floor = height - 20;
    const x = (i) => INSET + (i / last) * (width - 2 * INSET);
    const y = (count) => floor - 8 - (Math.log(count) / Math.log(most)) * (floor - 18);
    return { width, height, floor, most, last, x, y };
  }

  function drawChart() {
    const { photo } = now, { width, floor, most, x, y } = chartScales(), chart = $("chart");
    const first = photo.counts[0], end = photo.counts.at(-1);
    chart.replaceChildren();
    chart.setAttribute("aria-label", `From ${plural(first)} at threshold ${number(photo.thresholds[0])} to ${plural(end)} at ${number(photo.thresholds.at(-1))}`);
    const peak = Math.max(...photo.bars, 1);
    photo.bars.forEach((n, i) => {
      const [left, right] = [photo.edges[i], photo.edges[i + 1]].map((tau) => Math.min(Math.max(x(indexOf(tau)), INSET), width - INSET));
      const tall = (n / peak) * (floor - 18);
      if (right > left) chart.append(svg("rect", { class: "bars", x: left, y: floor - tall, width: Math.max(right - left - 0.5, 0.5), height: tall }));
    });
    chart.append(svg("line", { class: "rule", x1: INSET, x2: width - INSET, y1: floor, y2: floor }));
    for (const count of [1, 2, 5, 10, 20, 50, 100, 200].filter((c) => c <= most)) {
      chart.append(svg("line", { class: "rule", x1: INSET, x2: width - INSET, y1: y(count), y2: y(count), opacity: 0.6 }));
      chart.append(svg("text", { x: width + MARGIN, y: y(count) + 4, "text-anchor": "end" }, count));
    }
    const taus = photo.thresholds, marks = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30];
    let free = 0; // where the last number ends
    for (const tau of marks.filter((t) => t >= taus[0] && t <= taus.at(-1))) {
      const at = x(indexOf(tau));
      if (at < free) continue;
      chart.append(svg("text", { x: at, y: floor + 15, "text-anchor": "middle" }, tau));
      free = at + 36;
    }
    const path = photo.counts.map((count, i) => (i ? `V${y(count)}H${x(i)}` : `M${x(0)} ${y(count)}`)).join("");
    chart.append(svg("path", { class: "curve", d: path }));
    chart.append(svg("line", { class: "now", y1: 0, y2: floor }), svg("circle", { class: "dot", r: 5.5 }));
    moveChart();
  }

  function moveChart() {
    const { x, y } = chartScales(), at = x(state.tau);
    const line = $("chart").querySelector(".now"), dot = $("chart").querySelector(".dot");
    for (const end of ["x1", "x2"]) line.setAttribute(end, at);
    dot.setAttribute("cx", at);
    dot.setAttribute("cy", y(now.photo.counts[state.tau]));
  }

  // --- drawing, at most once a frame ---------------------------------------------------------------------------------

  const stale = new Set();
  let asked = 0;

  function redraw(...what) {
    what.forEach((name) => stale.add(name));
    asked ||= requestAnimationFrame(draw);
  }

  function draw() {
    cancelAnimationFrame(asked);
    asked = 0;
    if (!now) return;
    if (stale.has("threshold")) {
      drawSegments();
      drawLines();
      tellThreshold();
      moveChart();
    }
    if (stale.has("point")) drawPoint();
    drawLayers();
    tellPlace();
    stale.clear();
  }

  function drawPoint() {
    const maps = attention(state.point);
    now.maps = maps;
    document.querySelectorAll("#tiles canvas").forEach((canvas, i) => paint(canvas, maps[i]));
    const marker = $("marker"), { u, v } = state.point;
    marker.hidden = false;
    marker.classList.toggle("pinned", state.pinned);
    Object.assign(marker.style, { left: `${100 * u}%`, top: `${100 * v}%` });
    $("point").textContent = state.pinned ? "the kept point" : "a point";
    if ($("show-heat").checked) paint($("heat"), maps[state.level]);
  }

  function drawLayers() {
    const heat = $("show-heat").checked;
    Object.assign($("heat").style, { display: heat ? "block" : "none", opacity: 0.8 });
    Object.assign($("tint").style, { display: $("show-tint").checked && !heat ? "block" : "none", opacity: $("opacity").value / 100 });
    Object.assign($("lines").style, { display: $("show-lines").checked ? "block" : "none", opacity: heat ? 0.35 : 0.9 });
    document.querySelectorAll("#tiles button").forEach((b, i) => b.setAttribute("aria-pressed", String(heat && i === state.level)));
  }

  // --- what a reader does --------------------------------------------------------------------------------------------

  function setTau(index) {
    state.tau = Math.min(Math.max(index, 0), now.photo.counts.length - 1);
    redraw("threshold");
  }

  function setPoint(u, v, pinned) {
    Object.assign(state, { point: { u: Math.min(Math.max(u, 0), 0.9999), v: Math.min(Math.max(v, 0), 0.9999) }, pinned });
    redraw("point");
  }

  function setLevel(level) {
    if (level >= document.querySelectorAll("#tiles button").length) return;
    $("show-heat").checked = !($("show-heat").checked && level === state.level);
    state.level = level;
    redraw("point");
  }

  function toggle(id) {
    $(id).checked = !$(id).checked;
    redraw("point");
  }

  function placeOf(event) {
    const box = $("stage").getBoundingClientRect();
    const [u, v] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return { u: Math.min(Math.max(u, 0), 0.9999), v: Math.min(Math.max(v, 0), 0.9999) };
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !now) return;
    const { key, shiftKey, target } = event, [h, w] = now.levels[0].size;
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    const slider = target.id === "opacity" || target.id === "tau";
    const letters = {
      s: () => toggle("show-tint"), o: () => toggle("show-lines"), a: () => toggle("show-heat"),
      d: () => setTau(now.photo.start), n: () => show(state.photo + 1), p: () => show(state.photo - 1),
      escape: () => setPoint(state.point.u, state.point.v, false),
    };
    if (steps && shiftKey) setPoint(state.point.u + steps[0] / w, state.point.v + steps[1] / h, true);
    else if (slider && (steps || key === "Home" || key === "End")) return; // the slider's own
    else if (steps && !steps[1]) setTau(state.tau + steps[0]);
    else if (key === "Home") setTau(0);
    else if (key === "End") setTau(Infinity);
    else if (/^[1-9]$/.test(key)) setLevel(Number(key) - 1);
    else if (!shiftKey && letters[key.toLowerCase()]) letters[key.toLowerCase()]();
    else return;
    event.preventDefault();
  }

  function listen() {
    const stage = $("stage"), chart = $("chart");
    $("tau").addEventListener("input", () => setTau(Number($("tau").value)));
    for (const id of ["show-tint", "show-lines", "show-heat", "opacity"]) $(id).addEventListener("input", () => redraw("point"));
    stage.addEventListener("pointermove", (event) => {
      const place = placeOf(event);
      state.hover = place;
      if (event.buttons || !state.pinned) setPoint(place.u, place.v, state.pinned || event.buttons > 0);
      redraw("place");
    });
    stage.addEventListener("pointerdown", (event) => {
      const place = placeOf(event);
      setPoint(place.u, place.v, true);
    });
    stage.addEventListener("pointerleave", () => {
      state.hover = null;
      redraw("place");
    });
    const pick = (event) => {
      const { width, last } = chartScales(), left = chart.getBoundingClientRect().left;
      if (event.buttons) setTau(Math.round(((event.clientX - left - INSET) / (width - 2 * INSET)) * last));
    };
    chart.addEventListener("pointerdown", pick);
    chart.addEventListener("pointermove", pick);
    document.addEventListener("keydown", onKey);
    new ResizeObserver(() => now && drawChart()).observe(chart);
  }

  // --- photos --------------------------------------------------------------------------------------------------------

  function fillPicker() {
    photos.forEach((photo, i) => {
      const button = document.createElement("button"), picture = new Image();
      Object.assign(picture, { src: photo.picture, alt: photo.name });
      button.type = "button";
      button.title = photo.name;
      button.append(picture);
      button.addEventListener("click", () => show(i));
      $("picker").append(button);
    });
  }

  function fillTiles() {
    const sizes = now.levels.map(({ size: [h, w] }) => `${h} × ${w}`);
    const titles = sizes.length > 1 ? ["All", ...sizes] : sizes;
    const [h, w] = now.levels[0].size;
    $("tiles").replaceChildren(
      ...titles.map((title, i) => {
        const button = document.createElement("button"), name = document.createElement("span"), canvas = document.createElement("canvas");
        button.type = "button";
        name.textContent = title;
        canvas.style.aspectRatio = `${w} / ${h}`;
        button.setAttribute("aria-label", `Attention at ${title === "All" ? "all resolutions, added up" : title}, drawn on the photo`);
        button.append(canvas, name);
        button.addEventListener("click", () => setLevel(i));
        return button;
      }),
      Object.assign(document.createElement("p"), { className: "hint muted", textContent: "Point at the photo; a click keeps the point. Choose a map to lay it over the photo." }),
    );
  }

  function tellFacts(photo) {
    const held = photo.levels.map(({ size: [h, w], rows, columns }) => `${rows.length * columns.length} of ${h * w} maps at ${h} × ${w}`);
    $("facts").textContent =
      `${photo.name}: ${photo.width} × ${photo.height} pixels, shown and labelled at ${photo.size[1]} × ${photo.size[0]}; ` +
      `${photo.counts.length} thresholds; ${held.join(", ")}. A point shows the nearest map that is held.`;
  }

  async function show(index) {
    const chosen = (index + photos.length) % photos.length, photo = photos[chosen];
    state.photo = chosen;
    const ready = await decoded(photo);
    if (state.photo !== chosen) return; // another was chosen meanwhile
    now = ready;
    const { h, w } = now;
    Object.assign($("picture"), { src: photo.picture, alt: photo.name });
    $("stage").style.aspectRatio = `${w} / ${h}`;
    for (const id of ["stage", "where", "credit"]) $(id).style.maxWidth = `calc(var(--tall) * ${w} / ${h})`;
    for (const id of ["tint", "lines"]) Object.assign($(id), { width: w, height: h });
    Object.assign(now, { tint: new ImageData(w, h), edges: new ImageData(w, h) });
    $("tau").max = photo.counts.length - 1;
    $("credit").textContent = [photo.name, photo.credit].filter(Boolean).join(": ");
    document.querySelectorAll("#picker button").forEach((b, i) => b.setAttribute("aria-pressed", String(i === chosen)));
    Object.assign(state, { tau: photo.start, point: { u: 0.5, v: 0.5 }, hover: null, pinned: false });
    fillTiles();
    state.level = Math.min(state.level, document.querySelectorAll("#tiles button").length - 1);
    tellFacts(photo);
    drawChart();
    redraw("threshold", "point");
    draw();
  }

  async function start() {
    if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old; any of 2023 or later will do");
    fillPicker();
    listen();
    await show(0);
  }

  window.diffseg = { state, draw, show, attention, setTau, setPoint, get now() { return now; } }; // for the console
  window.diffseg.ready = start().catch((error) => {
    $("notice").textContent = `The page cannot be shown: ${error.message}.`;
    $("notice").hidden = false;
  });
})();
