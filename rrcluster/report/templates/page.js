"use strict";
// Search, folding, and charts. Without it the page is still whole: text, tables, pictures.
(() => {
  const root = document.documentElement;
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const said = (count) => count.toLocaleString("en");
  const by = (id) => document.getElementById(id);
  root.dataset.errors = "0";
  const failed = () => { root.dataset.errors = String(+root.dataset.errors + 1); };
  addEventListener("error", failed);
  addEventListener("unhandledrejection", failed);
  document.addEventListener("securitypolicyviolation", failed);

  // ---- little pictures in the folded rows, taken from the clusters below -------------------
  const STRIP = 5;
  for (const cluster of all("details.leaf, details.group")) {
    const strip = cluster.querySelector(":scope > summary .strip");
    let pictures = all(".samples img", cluster).slice(0, STRIP);
    if (cluster.classList.contains("group")) {
      pictures = all("details.leaf", cluster).map((l) => l.querySelector("img")).filter(Boolean);
    }
    for (const picture of pictures.slice(0, STRIP)) {
      const copy = new Image();
      copy.loading = "lazy";
      copy.alt = "";
      copy.src = picture.src;
      strip.append(copy);
    }
  }

  // ---- search and folding -----------------------------------------------------------------
  const box = by("q");
  const groups = all("details.group");
  const leaves = all("details.leaf");
  let before = null; // which groups were open when the search began

  function search(text) {
    const terms = text.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = (node) => terms.every((t) => node.dataset.text.includes(t));
    if (terms.length && !before) before = groups.map((g) => g.open);
    let found = 0;
    for (const leaf of leaves) {
      let node = leaf;
      let hit = false;
      while (node && !hit) {
        hit = matches(node);
        node = node.parentElement.closest("details");
      }
      leaf.hidden = !hit;
      found += hit;
    }
    groups.forEach((group, i) => {
      group.hidden = !group.querySelector("details.leaf:not([hidden])");
      if (terms.length) group.open = !group.hidden;
      else if (before) group.open = before[i];
    });
    if (!terms.length) before = null;
    by("found").textContent = terms.length
      ? `${said(found)} of ${said(leaves.length)} clusters`
      : `${said(leaves.length)} clusters`;
    by("nothing").hidden = found > 0;
    root.dataset.found = String(found);
  }

  // ---- a tree on several pages: the search leads to them ------------------------------------
  const HITS = 50;
  const everywhere = by("everywhere") && JSON.parse(by("everywhere").textContent);

  function searchPages(text) {
    const terms = text.toLowerCase().split(/\s+/).filter(Boolean);
    const list = by("hits");
    const { files, clusters } = everywhere;
    const hits = terms.length ? clusters.filter((c) => terms.every((t) => c[2].includes(t))) : [];
    list.replaceChildren(...hits.slice(0, HITS).map(([id, name, , page]) => {
      const link = document.createElement("a");
      link.href = `${files[page]}#c${id}`;
      link.textContent = name;
      const entry = document.createElement("li");
      entry.append(link, ` #${id}`);
      return entry;
    }));
    list.hidden = !hits.length;
    const some = hits.length > HITS ? `the first ${HITS} of ` : "";
    by("found").textContent = terms.length ? `${some}${said(hits.length)} found` : `${files.length} pages`;
    by("nothing").hidden = !terms.length || hits.length > 0;
    root.dataset.found = String(hits.length);
  }

  const look = everywhere ? searchPages : search;
  if (box) {
    box.addEventListener("input", () => look(box.value));
    if (by("fold")) {
      by("unfold").addEventListener("click", () => fold(true));
      by("fold").addEventListener("click", () => fold(false));
    }
    addEventListener("keydown", (event) => {
      const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName || "");
      if (event.key === "/" && !typing) { event.preventDefault(); box.focus(); }
      if (event.key === "Escape" && event.target === box) { box.value = ""; look(""); }
    });
    look("");
  }

  function fold(open) {
    // first the groups; the clusters too when the groups are already that way
    const inner = !groups.length || groups.every((g) => g.hidden || g.open === open);
    for (const node of inner ? [...groups, ...leaves] : groups) if (!node.hidden) node.open = open;
  }

  function follow() {
    const hash = decodeURIComponent(location.hash.slice(1));
    if (hash.startsWith("q=") && box) {
      box.value = hash.slice(2);
      look(box.value);
      return;
    }
    if (hash === "fold" || hash === "unfold") { fold(hash === "unfold"); return; }
    let node = hash && by(hash);
    if (!node || !node.matches("details")) return;
    if (box && box.value) { box.value = ""; search(""); }
    for (let up = node; up; up = up.parentElement.closest("details")) up.open = true;
    node.scrollIntoView({ block: "start" });
  }
  addEventListener("hashchange", follow);

  // ---- charts -----------------------------------------------------------------------------
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const still = { displayModeBar: false, responsive: true };
  const figures = JSON.parse(by("figures").textContent);
  const drawn = new Set();

  function colours() {
    const style = getComputedStyle(root);
    const get = (name) => style.getPropertyValue(`--${name}`).trim();
    return Object.fromEntries(
      ["ink", "muted", "line", "card", "accent", "soft", "warn", "good"].map((n) => [n, get(n)]));
  }

  function paint(figure) {
    const c = colours();
    const { data, layout } = JSON.parse(JSON.stringify(figure));
    for (const trace of data) {
      const role = trace.meta;
      const fill = {
        accepted: c.good, good: c.good, refused: c.warn, chosen: c.warn, warn: c.warn,
        before: c.muted, muted: c.muted,
      }[role] || c.accent;
      trace.marker = { ...trace.marker, color: fill };
      trace.line = { ...trace.line, color: fill, width: 2.5 };
      if (role === "line") trace.marker.size = 6;
      if (role === "chosen") {
        trace.marker = { ...trace.marker, size: 13, symbol: "diamond", line: { color: c.card, width: 2 } };
        trace.textfont = { color: c.ink, size: 14 };
      }
      if (role === "refused") {
        trace.marker.pattern = { shape: "/", fgcolor: c.warn, bgcolor: c.card, fillmode: "replace", size: 6 };
        trace.marker.line = { color: c.warn, width: 1.5 };
      }
      if (trace.type === "bar") delete trace.line;
      if (role === "heat") {
        Object.assign(trace, { colorscale: [[0, c.card], [1, c.accent]], showscale: false });
        delete trace.marker;
        delete trace.line;
      }
    }
    for (const shape of layout.shapes || []) {
      if (shape.name === "range") Object.assign(shape, { fillcolor: c.soft, line: { width: 0 }, layer: "below" });
      else shape.line = { ...shape.line, color: c.muted, width: 1.5 };
    }
    const axis = {
      gridcolor: c.line, linecolor: c.line, zerolinecolor: c.muted, tickcolor: c.line,
      fixedrange: true, automargin: true, zeroline: false,
    };
    const small = innerWidth < 600;
    const heat = data.find((t) => t.meta === "heat");
    Object.assign(layout, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false,
      font: { family: getComputedStyle(document.body).fontFamily, size: small ? 12 : 13, color: c.muted },
      margin: { l: 8, r: 12, t: 14, b: 8 }, height: small ? 250 : 300,
      hoverlabel: { bgcolor: c.card, bordercolor: c.accent, font: { color: c.ink }, align: "left" },
      legend: { orientation: "h", x: 0, y: 1.16 },
      xaxis: { ...layout.xaxis, ...axis, showgrid: false },
      yaxis: { ...layout.yaxis, ...axis },
    });
    if (heat) { // a row of its own for every cluster
      layout.height = 200 + 26 * heat.y.length;
      layout.yaxis.showgrid = false;
      if (small) layout.font.size = 10;
    }
    return [data, layout];
  }

  function small(node) {
    const counts = node.dataset.counts.split(",").map(Number);
    const width = 1 / counts.length;
    const trace = {
      type: "bar", meta: "bar", y: counts, x: counts.map((_, i) => (i + 0.5) * width),
      hovertemplate: "%{x:.2f}: %{y:,}<extra></extra>",
    };
    const [data, layout] = paint({ data: [trace], layout: { bargap: 0.12 } });
    Object.assign(layout, { height: 90, margin: { l: 8, r: 8, t: 4, b: 24 } });
    layout.xaxis = { ...layout.xaxis, range: [0, 1], tickvals: [0, 0.5, 1], ticktext: ["0", "0.5", "1"], tickfont: { size: 11 }, automargin: false };
    layout.yaxis = { visible: false, fixedrange: true };
    return [data, layout];
  }

  function draw(node) {
    const [data, layout] = node.dataset.figure ? paint(figures[node.dataset.figure]) : small(node);
    drawn.add(node);
    return Plotly.react(node, data, layout, still);
  }

  async function start() {
    const packed = by("plotly");
    if (!packed) {
      all(".histogram").forEach((node) => { node.hidden = true; });
      return;
    }
    const bytes = Uint8Array.from(atob(packed.textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    packed.remove();
    await Promise.all(all(".plot").map(draw));
    const unfolded = (leaf) => leaf.open && all(":scope > .inside > .facts .histogram", leaf).forEach(draw);
    for (const leaf of leaves) {
      leaf.addEventListener("toggle", () => unfolded(leaf));
      unfolded(leaf);
    }
    dark.addEventListener("change", () => drawn.forEach(draw));
    root.dataset.charts = String(drawn.size);
  }

  follow();
  start().catch((error) => {
    failed();
    console.error(error);
    all(".plot, .histogram").forEach((node) => { node.hidden = true; });
  }).finally(() => {
    root.dataset.overflow = String(root.scrollWidth - root.clientWidth); // sideways, in pixels
    root.dataset.ready = "yes";
  });
})();
