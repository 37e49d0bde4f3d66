"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const percent = (v) => `${Number((100 * v).toPrecision(3))}%`;
  const common = { style: { background: "transparent", color: "inherit" } };

  // The network by arrow keys: one row is in the order of Tab, the others are reached from it.
  const rows = [...document.querySelectorAll(".net li")];
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  rows.forEach((row, i) => {
    row.addEventListener("keydown", (event) => {
      if (!(event.key in steps)) return;
      event.preventDefault();
      const next = rows[Math.min(Math.max(i + steps[event.key], 0), rows.length - 1)];
      row.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  });

  // A chart is drawn once it comes near the window or nothing else is to be done, and all of them before they are printed.
  const pending = new Map();
  const draw = (place) => {
    const make = pending.get(place);
    if (!make) return;
    pending.delete(place);
    const chart = make(Math.max(place.clientWidth, 200));
    // One picture with one description: its parts have labels on elements that may not have any.
    chart.setAttribute("role", "img");
    chart.querySelectorAll("[aria-label]").forEach((part) => part.removeAttribute("aria-label"));
    place.replaceChildren(chart);
  };
  const near = new IntersectionObserver(
    (entries) => entries.forEach((e) => e.isIntersecting && (near.unobserve(e.target), draw(e.target))),
    { rootMargin: "400px" },
  );
  const later = (place, make) => {
    pending.set(place, make);
    near.observe(place);
  };
  const idle = (deadline) => {
    const open = [...pending.keys()].filter((place) => place.clientWidth);
    for (const place of open) {
      if (deadline.timeRemaining() < 5) return requestIdleCallback(idle);
      near.unobserve(place);
      draw(place);
    }
  };
  if ("requestIdleCallback" in window) addEventListener("load", () => requestIdleCallback(idle));
  addEventListener("beforeprint", () => [...pending.keys()].forEach(draw));

  const curve = (c) => (width) => {
    const points = c.points.map(([channels, error, tried]) => ({ channels, error, tried }));
    return Plot.plot({
      ...common,
      width,
      height: 150,
      marginLeft: 46,
      ariaLabel: `Error of the outputs against ${c.counts} kept of ${c.name}`,
      ariaDescription: c.said,
      x: { label: `${c.counts} kept`, ticks: 4, tickFormat: "d" },
      y: { label: "error", ticks: 4, tickFormat: percent, zero: true, grid: true },
      marks: [
        Plot.lineY(points, { x: "channels", y: "error", stroke: "var(--slim)", strokeWidth: 2 }),
        Plot.dot(points.filter((p) => p.tried), { x: "channels", y: "error", fill: "var(--slim)" }),
        Plot.ruleX(c.after === null ? [] : [c.after], { stroke: "currentColor", strokeDasharray: "4 3" }),
        Plot.tip(
          points,
          Plot.pointerX({
            x: "channels",
            y: "error",
            title: (p) => `${p.channels} ${c.counts}: ${percent(p.error)}${p.tried ? ", tried" : ", estimated"}`,
          }),
        ),
      ],
    });
  };
  document.querySelectorAll("[data-curve]").forEach((place) => later(place, curve(data.curves[Number(place.dataset.curve)])));

  // The front of a sweep, with the chosen ratio in words beside it.
  const place = document.querySelector("[data-front]");
  if (!place) return;
  const known = data.front.points.filter((p) => p.size !== null && p.error !== null);
  const front = known.filter((p) => p.front).sort((a, b) => a.size - b.size);
  const original = data.front.original === null ? [] : [{ size: data.front.original, error: 0 }];
  // A wide interval would press all else together.
  const highest = 1.5 * Math.max(...known.map((p) => p.error));
  const sure = known.filter((p) => p.low !== null && p.high !== null && p.low < highest);
  const chart = (chosen) => (width) =>
    Plot.plot({
      ...common,
      width,
      height: 300,
      marginLeft: 52,
      ariaLabel: `Output error against ${data.front.counted} for each ratio that was tried`,
      x: { label: data.front.counted, tickFormat: "~s", nice: true },
      y: { label: "output error", tickFormat: percent, zero: true, grid: true },
      marks: [
        Plot.ruleX(sure, { x: "size", y1: "low", y2: (p) => Math.min(p.high, highest), stroke: "var(--wide)", strokeWidth: 3 }),
        Plot.line([...front, ...original], { x: "size", y: "error", stroke: "var(--slim)", strokeWidth: 2 }),
        Plot.dot(original, { x: "size", y: "error", r: 4, stroke: "var(--quiet)", fill: "var(--panel)" }),
        Plot.dot(known, { x: "size", y: "error", r: 4, fill: (p) => (p.front ? "var(--slim)" : "var(--quiet)") }),
        Plot.dot([chosen].filter((p) => known.includes(p)), { x: "size", y: "error", r: 9, stroke: "var(--accent)", strokeWidth: 3 }),
        Plot.tip(known, Plot.pointer({ x: "size", y: "error", title: (p) => `ratio ${p.label}: ${percent(p.error)}` })),
      ],
    });
  const slider = document.getElementById("ratio");
  const point = document.getElementById("point");
  const choose = () => {
    const chosen = data.front.points[Number(slider.value)];
    document.getElementById("chosen").textContent = chosen.label;
    slider.setAttribute("aria-valuetext", `ratio ${chosen.label}`);
    const table = document.createElement("table");
    for (const [name, value] of chosen.texts) {
      const row = table.insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = name;
      row.append(head);
      row.insertCell().textContent = value;
    }
    point.replaceChildren(table);
    pending.set(place, chart(chosen));
    draw(place);
  };
  slider.parentElement.hidden = false;
  slider.addEventListener("input", choose);
  choose();
})();
