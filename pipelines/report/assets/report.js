// What moves in the page: pictures that come when they are near, charts that fit, filters, the slider, the larger view.
"use strict";
(() => {
  const one = (query, root = document) => root.querySelector(query);
  const all = (query, root = document) => [...root.querySelectorAll(query)];

  // Pictures stand in the page once, as data; an <img> gets its own when it comes near the window.
  let urls;
  const url = (id) => (urls ??= JSON.parse(one("#pictures").textContent))[id];
  const near = new IntersectionObserver((entries) => {
    for (const {isIntersecting, target} of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      const found = url(target.dataset.picture);
      if (found) target.src = found;
    }
  }, {rootMargin: "500px"});
  all("img[data-picture]").forEach((image) => near.observe(image));

  // What the person chose.
  const chosen = {sizes: "", score: 0, class: "", threshold: 0.5, colour: {}};

  const draw = {
    sizes: (width) => charts.sizes(width, chosen.sizes),
    scores: (width) => charts.scores(width, chosen.score, chosen.class, chosen.threshold),
    map: (width, place) => charts.map(width, place, chosen.colour[place] ?? charts.data.maps[place].colours[0], tip),
  };
  const redraw = (figure) => {
    const width = Math.floor(figure.clientWidth - parseFloat(getComputedStyle(figure).paddingLeft) * 2);
    if (width < 1) return;
    const {chart, index} = figure.dataset;
    figure.replaceChildren((draw[chart] ?? charts[chart])(width, Number(index)));
  };
  const figures = (name) => all(`[data-chart="${name}"]`);

  // Charts are drawn when they come near the window, and again when their width changes.
  const widths = new WeakMap();
  const fit = new ResizeObserver((entries) => {
    for (const {target} of entries) {
      if (widths.get(target) === target.clientWidth) continue;
      widths.set(target, target.clientWidth);
      redraw(target);
    }
  });
  const arriving = new IntersectionObserver((entries) => {
    for (const {isIntersecting, target} of entries) {
      if (!isIntersecting) continue;
      arriving.unobserve(target);
      fit.observe(target);
    }
  }, {rootMargin: "800px"});
  all("[data-chart]").forEach((figure) => arriving.observe(figure));

  // The map shows the image under the pointer.
  const box = one("#tip");
  let at = {x: 0, y: 0};
  addEventListener("pointermove", (event) => { at = {x: event.clientX, y: event.clientY}; place(); }, {passive: true});
  addEventListener("scroll", () => { box.hidden = true; }, {passive: true});
  function place() {
    if (box.hidden) return;
    const {offsetWidth: w, offsetHeight: h} = box;
    box.style.left = `${Math.max(8, Math.min(at.x + 16, innerWidth - w - 8))}px`;
    box.style.top = `${at.y + 16 + h > innerHeight ? Math.max(8, at.y - h - 16) : at.y + 16}px`;
  }
  function tip(point, name) {
    box.hidden = !point;
    if (!point) return;
    const lines = [charts.data.keys[point.image], name].map((text) => {
      const line = document.createElement("div");
      line.textContent = text;
      return line;
    });
    lines[0].className = "key";
    const image = new Image();
    image.alt = "";
    image.src = url(point.image) ?? "";
    box.replaceChildren(...(image.getAttribute("src") ? [image] : []), ...lines);
    place();
  }
  all("[data-map]").forEach((select) => select.addEventListener("change", () => {
    chosen.colour[select.dataset.map] = select.value;
    figures("map").filter((figure) => figure.dataset.index === select.dataset.map).forEach(redraw);
  }));

  one("[data-sizes]")?.addEventListener("change", (event) => {
    chosen.sizes = event.target.value;
    figures("sizes").forEach(redraw);
  });

  // Scores: which, of which class, and the threshold.
  const slider = one("[data-threshold]");
  if (slider) {
    const pick = one("[data-score]");
    const group = one("[data-score-class]");
    const say = () => {
      chosen.threshold = Number(slider.value);
      one("[data-threshold-value]").textContent = slider.value;
      one("[data-verdict]").textContent = charts.verdict(chosen.score, chosen.class, chosen.threshold);
      figures("scores").forEach((figure) => { if (figure.firstChild) redraw(figure); });
    };
    const change = () => {
      chosen.score = Number(pick.value);
      chosen.class = "";
      const score = charts.data.scores[chosen.score];
      const decimals = Math.max(0, Math.ceil(-Math.log10(score.width)));
      slider.min = score.start.toFixed(decimals);
      slider.max = (score.start + score.counts.length * score.width).toFixed(decimals);
      slider.step = score.width;
      slider.value = score.threshold ?? score.start + Math.round(score.counts.length / 2) * score.width;
      group.hidden = !(score.classes?.length > 1);
      one("select", group).replaceChildren(new Option("all", ""), ...(score.classes ?? []).map((each, place) => new Option(each.name, place)));
      say();
    };
    pick.addEventListener("change", change);
    one("select", group).addEventListener("change", (event) => { chosen.class = event.target.value; say(); });
    slider.addEventListener("input", say);
    change();
  }

  // Labels on images: which set, which class, which layers.
  const grid = one("#overlay-grid");
  if (grid) {
    const buttons = all("[data-set]");
    const select = one("[data-class]");
    const more = one("[data-more]");
    const first = 12;
    let set = buttons[0]?.dataset.set;
    let everything = false;
    const filter = () => {
      buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.set === set)));
      const items = all("li", grid);
      items.sort((a, b) => a.dataset[set] - b.dataset[set]);
      grid.append(...items);
      const fits = (item) => item.dataset[set] !== "" && (select.value === "" || JSON.parse(item.dataset.classes).includes(select.value));
      const fitting = items.filter(fits);
      const shown = new Set(everything ? fitting : fitting.slice(0, first));
      for (const item of items) item.hidden = !shown.has(item);
      more.hidden = shown.size === fitting.length;
      more.textContent = `Show all ${fitting.length}`;
      one("[data-none]").hidden = fitting.length > 0;
    };
    more.addEventListener("click", () => { everything = true; filter(); });
    buttons.forEach((button) => button.addEventListener("click", () => { set = button.dataset.set; everything = false; filter(); }));
    select.addEventListener("change", filter);
    all("[data-layer]").forEach((check) => check.addEventListener("change", () => document.body.classList.toggle(`no-${check.dataset.layer}`, !check.checked)));
    filter();
  }

  all("[data-kinds]").forEach((tools) => tools.addEventListener("click", ({target}) => {
    if (!(target instanceof HTMLButtonElement)) return;
    all("button", tools).forEach((button) => button.setAttribute("aria-pressed", String(button === target)));
    all(".group", tools.nextElementSibling).forEach((group) => {
      group.hidden = target.dataset.kind !== "" && !group.dataset.kindsOf.split(" ").includes(target.dataset.kind);
    });
  }));

  // A click on a picture shows it larger, with what is written below it.
  const dialog = one("#large");
  document.addEventListener("click", ({target}) => {
    if (target === dialog) dialog.close();
    const picture = target.closest?.(".picture");
    const image = picture && one("img[src]", picture);
    if (!image || dialog.contains(target)) return;
    const content = (picture.closest("li") ?? picture).cloneNode(true);
    const shown = document.createElement("div");
    shown.append(...(content.matches("li") ? content.childNodes : [content]));
    if (!content.matches("li")) {
      const key = document.createElement("p");
      key.className = "key";
      key.textContent = image.alt;
      shown.append(key);
    }
    dialog.lastElementChild.replaceChildren(shown);
    dialog.showModal();
  });

  // The part that is being read is marked above.
  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  const reading = new IntersectionObserver((entries) => {
    for (const {isIntersecting, target} of entries) {
      const link = links.get(target.id);
      if (isIntersecting) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
      const current = one("nav a[aria-current]");
      one("nav ul").scrollTo({left: current ? current.offsetLeft - 24 : 0});
    }
  }, {rootMargin: "-20% 0px -79% 0px"});
  all("main > section").forEach((section) => reading.observe(section));
})();
