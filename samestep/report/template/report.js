"use strict";
// One cursor for all charts: the column nearest to the pointer, its values in the captions. Nothing else is scripted.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const told = JSON.parse(document.getElementById("numbers").textContent);
  const curves = document.getElementById("curves");
  const where = document.getElementById("where");
  const last = told.steps.length - 1;
  if (!curves || last < 0) return;

  const add = (plot, name, css) => {
    const made = document.createElementNS(SVG, name);
    made.setAttribute("class", css);
    made.setAttribute("visibility", "hidden");
    return plot.appendChild(made);
  };

  const panels = [...curves.querySelectorAll("figure")].map((figure) => {
    const plot = figure.querySelector(".plot");
    const lines = told.panels[figure.dataset.key];
    const rule = add(plot, "line", "cursor");
    rule.setAttribute("y1", 0);
    rule.setAttribute("y2", 100);
    const stacked = figure.dataset.key === "phases";
    const paths = [...plot.querySelectorAll(".line")];
    const dots = stacked ? [] : lines.map((_, at) => add(plot, "path", "dot " + paths[at].getAttribute("class").split(" ")[1]));
    return { plot, lines, rule, dots, outputs: [...figure.querySelectorAll("output")] };
  });

  const nearest = (x) => {
    let low = 0;
    let high = last;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (told.xs[middle] < x) low = middle;
      else high = middle;
    }
    return Math.abs(told.xs[low] - x) <= Math.abs(told.xs[high] - x) ? low : high;
  };

  let at = last;

  const write = (shown) => {
    where.textContent = (shown ? "" : "last: ") + "step " + told.steps[at].toLocaleString("en-US");
    for (const panel of panels) {
      panel.outputs.forEach((output, line) => { output.textContent = panel.lines[line].v[at]; });
    }
  };

  const draw = (shown) => {
    const x = told.xs[at];
    for (const panel of panels) {
      panel.rule.setAttribute("x1", x);
      panel.rule.setAttribute("x2", x);
      panel.rule.setAttribute("visibility", shown ? "visible" : "hidden");
      panel.dots.forEach((dot, line) => {
        const y = panel.lines[line].y[at];
        dot.setAttribute("visibility", shown && y !== null ? "visible" : "hidden");
        if (y !== null) dot.setAttribute("d", "M" + x + " " + y + "h0");
      });
    }
  };

  const show = (column) => {
    at = Math.min(last, Math.max(0, column));
    write(true);
    draw(true);
  };

  const rest = () => {
    at = last;
    write(false);
    draw(false);
  };

  for (const { plot } of panels) {
    const follow = (event) => {
      const box = plot.getBoundingClientRect();
      show(nearest((1000 * (event.clientX - box.left)) / box.width));
    };
    plot.addEventListener("pointermove", follow);
    plot.addEventListener("pointerdown", follow);
    plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") rest(); });
  }

  const MOVES = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -Infinity, End: Infinity };
  curves.addEventListener("keydown", (event) => {
    if (event.key === "Escape") rest();
    if (!(event.key in MOVES)) return;
    event.preventDefault();
    show(at + MOVES[event.key]);
  });

  rest();
})();
