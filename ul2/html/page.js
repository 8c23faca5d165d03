"use strict";
// Values under the pointer, one tip per chart. Text is set as text, never as HTML.
document.querySelectorAll("figure[data-chart]").forEach((figure) => {
  const svg = figure.querySelector("svg");
  const chart = JSON.parse(figure.querySelector("script").textContent);
  const cursor = svg.querySelector(".cursor");
  const tip = figure.appendChild(document.createElement("div"));
  tip.className = "tip";
  const hide = () => { tip.style.visibility = cursor.style.visibility = "hidden"; };
  const line = (text, colour) => {
    const row = tip.appendChild(document.createElement("div"));
    if (colour !== undefined) {
      row.appendChild(document.createElement("i")).style.background = `var(--c${colour})`;
    }
    row.appendChild(document.createTextNode(text));
  };
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle + 1; else high = middle;
    }
    return low > 0 && x - xs[low - 1] < xs[low] - x ? low - 1 : low;
  };
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * chart.width;
    const x = chart.low + (at - chart.start) / (chart.end - chart.start) * (chart.high - chart.low);
    const all = chart.lines.filter((one) => one.x.length);
    if (!all.length || at < chart.start - 8 || at > chart.end + 8) return hide();
    const places = all.map((one) => one.x[nearest(one.x, x)]);
    const best = places.reduce((a, b) => Math.abs(b - x) < Math.abs(a - x) ? b : a);
    tip.replaceChildren();
    line(`${chart.xlabel} ${best.toLocaleString("en", {maximumFractionDigits: 1})}`);
    all.forEach((one) => {
      const n = nearest(one.x, best);
      line(`${one.label}  ${one.text[n]}`, one.colour);
    });
    const place = chart.start + (best - chart.low) / (chart.high - chart.low) * (chart.end - chart.start);
    cursor.setAttribute("x1", place); cursor.setAttribute("x2", place);
    cursor.style.visibility = tip.style.visibility = "visible";
    const left = place / chart.width * box.width;
    const room = box.width - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(room, left > box.width / 2 ? left - tip.offsetWidth - 12 : left + 12))}px`;
    tip.style.top = `${svg.offsetTop + 6}px`;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
});
// A sentinel and its span, on both sides.
document.querySelectorAll(".card").forEach((card) => {
  const mark = (number, on) => card.querySelectorAll("[data-span]").forEach((one) => {
    one.classList.toggle("on", on && one.dataset.span === number);
  });
  card.addEventListener("pointerover", (event) => {
    const one = event.target.closest("[data-span]");
    mark(one ? one.dataset.span : "", Boolean(one));
  });
  card.addEventListener("pointerleave", () => mark("", false));
});
// Cards of one kind.
document.querySelectorAll(".filter").forEach((filter) => {
  filter.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    filter.querySelectorAll("button").forEach((one) => one.setAttribute("aria-pressed", String(one === button)));
    document.querySelectorAll(`.${filter.dataset.cards}`).forEach((card) => {
      card.classList.toggle("away", Boolean(button.dataset.kind) && card.dataset.kind !== button.dataset.kind);
    });
  });
});
