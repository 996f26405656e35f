// Brings the page to life; without it all tables and figures are there as well.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const chart = document.getElementById("front-chart");
  const card = document.getElementById("card");
  const near = 18; // pixels of the chart within which a trial is pointed at
  const make = (tag, text, cls) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (cls) node.className = cls;
    return node;
  };
  const shown = (value) => (value === null ? "–" : String(value));
  const rowOf = (trial) => data.rows.findIndex((row) => row[0] === trial);
  const outside = (row) => (data.reasons[row] ? `, not eligible: ${data.reasons[row]}` : "");
  const title = (row) => `Trial ${data.rows[row][0]}, seed ${data.rows[row][1]} · ${data.rows[row][2]}${outside(row)}`;

  function describe(row) {
    const list = make("dl");
    const first = data.names.length - data.objectives.length;
    const entries = data.names.map((name, i) => [name, shown(data.rows[row][i]), i]).slice(3);
    for (const [name, value, i] of [...entries.filter((e) => e[2] >= first), ...entries.filter((e) => e[2] < first)]) {
      const entry = make("div");
      const interval = i >= first && (data.intervals[row] || [])[i - first];
      entry.append(make("dt", name), make("dd", value + (i >= first ? " " + data.units[i - first] : "")));
      if (interval) entry.lastChild.append(make("br"), make("small", `95 %: ${interval}`));
      list.append(entry);
    }
    return list;
  }

  // One trial on top of curves and parallel coordinates.
  function highlight(row) {
    for (const old of document.querySelectorAll("path.highlight")) old.remove();
    for (const line of document.querySelectorAll("tr.lit, article.lit")) line.classList.remove("lit");
    if (row === null) return;
    const add = (id, d) => {
      const svg = document.getElementById(id);
      if (!svg || d === "M") return; // a trial without a single value
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("class", "highlight");
      path.setAttribute("d", d);
      svg.append(path);
    };
    for (const curves of data.curves) {
      const flat = curves.of[row];
      if (!flat) continue;
      const points = [];
      if (flat[0] === 0) for (let i = 1; i < flat.length; i += 2) points.push([flat[i], flat[i + 1]]);
      else flat.slice(1).forEach((value, i) => points.push([flat[0] + i, value]));
      const scale = ([low, high, from, to], value) => (from + ((value - low) / (high - low)) * (to - from)).toFixed(1);
      add(curves.id, "M" + points.map(([x, y]) => `${scale(curves.x, x)} ${scale(curves.y, y)}`).join("L"));
    }
    if (data.parallel) {
      const points = data.parallel.xs.map((x, i) => [x, data.parallel.ys[i][row]]).filter((p) => p[1] !== null);
      add("parallel-chart", "M" + points.map((p) => p.join(" ")).join("L"));
    }
    for (const line of document.querySelectorAll(`[data-row="${row}"]`)) {
      if (line.matches("tr, article")) line.classList.add("lit");
    }
  }

  function showCard(row) {
    const [x, y] = data.places[row];
    const box = chart.getBoundingClientRect();
    const scale = box.width / chart.viewBox.baseVal.width;
    card.replaceChildren(make("h4", title(row)), describe(row));
    const maps = document.querySelector(`article[data-row="${row}"] .maps`);
    if (maps) card.append(maps.cloneNode(true));
    if (data.sections[row] === undefined && document.getElementById("finder")) card.append(make("small", "click to open"));
    card.hidden = false;
    // Beside the point: on its right where there is room, else on its left; never outside the window.
    const [px, py] = [x * scale, y * scale];
    const room = document.documentElement.clientWidth - box.left - card.offsetWidth - 8;
    const left = px + 18 <= room ? px + 18 : px - 18 - card.offsetWidth;
    const lowest = window.innerHeight - box.top - card.offsetHeight - 8;
    card.style.left = `${Math.max(-box.left + 8, left)}px`;
    card.style.top = `${Math.max(8 - box.top, Math.min(py - 30, lowest))}px`;
    highlight(row);
  }
  function hideCard() {
    card.hidden = true;
    highlight(null);
  }

  function open(row) {
    hideCard();
    let section = document.getElementById(data.sections[row]);
    if (!section) {
      section = document.getElementById("any-trial");
      section.replaceChildren(make("h3", title(row)), describe(row));
      section.hidden = false;
    }
    section.scrollIntoView();
    section.focus({ preventScroll: true });
    highlight(row);
  }

  if (chart) {
    document.querySelector(".hint").hidden = false;
    const rows = Object.keys(data.places);
    const at = (event) => {
      const box = chart.getBoundingClientRect();
      const scale = chart.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * scale;
      const y = (event.clientY - box.top) * scale;
      let best = null;
      let least = near * near;
      for (const row of rows) {
        const [px, py] = data.places[row];
        const front = data.sections[row] !== undefined ? 0.5 : 1; // a front trial is easier to hit
        const distance = ((px - x) ** 2 + (py - y) ** 2) * front;
        if (distance < least) [best, least] = [row, distance];
      }
      return best;
    };
    chart.addEventListener("pointermove", (event) => {
      const row = at(event);
      chart.style.cursor = row === null ? "" : "pointer";
      if (row === null) hideCard();
      else showCard(row);
    });
    chart.addEventListener("pointerleave", hideCard);
    chart.addEventListener("click", (event) => {
      const link = event.target.closest("a");
      const row = event.detail === 0 && link ? link.dataset.row : at(event); // detail 0: the Enter key
      if (row === null) return;
      event.preventDefault();
      open(row);
    });
    for (const link of chart.querySelectorAll("a")) {
      link.addEventListener("focus", () => showCard(link.dataset.row));
      link.addEventListener("blur", hideCard);
    }
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") hideCard();
    });
  }
  for (const link of document.querySelectorAll("#front table a")) {
    link.addEventListener("click", (event) => {
      const row = rowOf(Number(link.textContent));
      if (document.getElementById(link.hash.slice(1)) || row < 0) return;
      event.preventDefault();
      open(row);
    });
  }

  const finder = document.getElementById("finder");
  finder.hidden = data.rows.length === 0;
  finder.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = document.getElementById("wanted").value.trim();
    const row = /^\d+$/.test(text) ? rowOf(Number(text)) : -1;
    document.getElementById("answer").textContent = row < 0 ? `there is no trial ${text}` : "";
    if (row >= 0) open(row);
  });

  // Tables of trials sort by a click on a column's name.
  const all = document.getElementById("all");
  if (all) {
    all.querySelectorAll("th").forEach((head, column) => {
      const button = make("button", head.textContent);
      let down = false;
      button.addEventListener("click", () => {
        down = !down;
        const key = (line) => line.cells[column].textContent;
        const lines = [...all.tBodies[0].rows].sort((a, b) => {
          const [x, y] = [key(a), key(b)];
          const [u, v] = [parseFloat(x), parseFloat(y)];
          const order = Number.isNaN(u) || Number.isNaN(v) ? x.localeCompare(y) : u - v;
          return down ? -order : order;
        });
        all.tBodies[0].append(...lines);
        for (const other of all.querySelectorAll("th")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
      });
      head.replaceChildren(button);
    });
    all.addEventListener("pointerover", (event) => {
      const line = event.target.closest("tr[data-row]");
      if (line) highlight(line.dataset.row);
    });
  }
})();
