"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const seriesColour = (group) => `var(--series-${group % getSeriesCount()})`;

function getSeriesCount() {
  const style = getComputedStyle(document.documentElement);
  let count = 0;
  while (style.getPropertyValue(`--series-${count}`)) count += 1;
  return count;
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// The legend shows and hides groups of runs.
const hidden = new Set();
for (const button of document.querySelectorAll("[data-toggle]")) {
  button.addEventListener("click", () => {
    const group = button.dataset.toggle;
    const isShown = hidden.has(group);
    if (isShown) hidden.delete(group);
    else hidden.add(group);
    button.setAttribute("aria-pressed", String(isShown));
    for (const part of document.querySelectorAll(`#curves svg [data-group="${group}"]`)) {
      part.style.display = isShown ? "" : "none";
    }
  });
}

// Show the values under the pointer, in every figure.
const tooltip = document.getElementById("tooltip");

function nearest(values, x) {
  let best = 0;
  values.forEach((value, place) => {
    if (Math.abs(value - x) < Math.abs(values[best] - x)) best = place;
  });
  return best;
}

function show(canvas, plot, clientX, clientY) {
  const box = canvas.getBoundingClientRect();
  const [left, right, bottom, top] = plot.frame;
  const [first, last] = plot.xLimits;
  const scale = (x) => (plot.isLogX ? Math.log2(x) : x);
  const share = ((clientX - box.left) / box.width - left) / (right - left);
  const wanted = first + Math.min(Math.max(share, 0), 1) * (last - first);
  const shown = plot.series.filter((line) => line.x.length && !hidden.has(String(line.group)));
  if (!shown.length) return;
  const all = shown.flatMap((line) => line.x);
  const x = all[nearest(all.map(scale), wanted)];
  tooltip.replaceChildren(element("small", "", `${plot.xLabel} ${x}`));
  for (const line of shown) {
    const place = line.x.indexOf(x);
    if (place < 0 || line.y[place] === null) continue;
    const row = element("div");
    const dot = element("span", "dot");
    dot.style.background = seriesColour(line.group);
    row.append(dot, element("span", "", line.label), element("b", "", String(line.y[place])));
    if (line.low[place] !== line.high[place]) row.append(element("small", "", `${line.low[place]} to ${line.high[place]}`));
    tooltip.append(row);
  }
  for (const mark of plot.marks) if (mark.x === x) tooltip.append(element("small", "", mark.text));
  const hair = canvas.querySelector(".hair") || canvas.appendChild(element("span", "hair"));
  const place = left + ((scale(x) - first) / (last - first)) * (right - left);
  hair.hidden = false;
  hair.style.left = `${place * 100}%`;
  hair.style.top = `${(1 - top) * 100}%`;
  hair.style.height = `${(top - bottom) * 100}%`;
  tooltip.hidden = false;
  const size = tooltip.getBoundingClientRect();
  tooltip.style.left = `${Math.max(4, Math.min(clientX + 14, innerWidth - size.width - 8))}px`;
  tooltip.style.top = `${Math.max(4, Math.min(clientY + 14, innerHeight - size.height - 8))}px`;
}

for (const figure of document.querySelectorAll("[data-plot]")) {
  const plot = data.plots[figure.dataset.plot];
  const canvas = figure.querySelector(".canvas");
  const hide = () => {
    tooltip.hidden = true;
    const hair = canvas.querySelector(".hair");
    if (hair) hair.hidden = true;
  };
  for (const event of ["pointermove", "pointerdown"]) {
    canvas.addEventListener(event, (pointer) => show(canvas, plot, pointer.clientX, pointer.clientY));
  }
  canvas.addEventListener("pointerleave", hide);
  canvas.addEventListener("pointercancel", hide);
}

// Responses are untrusted: set as text, never as HTML.
const PAGE = 12;
const search = document.getElementById("search");
const list = document.getElementById("list");
let limit = PAGE;

function highlighted(node, text, words) {
  const lower = text.toLowerCase();
  let from = 0;
  // For some letters lower case has another length, so that positions in `lower` would be wrong.
  while (lower.length === text.length && words.length) {
    const found = words.map((word) => [lower.indexOf(word, from), word.length]).filter(([place]) => place >= 0);
    if (!found.length) break;
    const [place, length] = found.reduce((a, b) => (b[0] < a[0] ? b : a));
    node.append(text.slice(from, place), element("mark", "", text.slice(place, place + length)));
    from = place + length;
  }
  node.append(text.slice(from));
  return node;
}

function labelled(title, className, text, words) {
  const part = element("div");
  part.append(element("h4", "", title), highlighted(element("pre", className), text, words));
  return part;
}

function card(response, words) {
  const made = element("article", "response");
  const head = element("header");
  const run = element("span");
  const dot = element("span", "dot");
  dot.style.background = seriesColour(response.group);
  run.append(dot, response.run);
  head.append(element("span", `badge ${response.isRight ? "right" : "wrong"}`, response.isRight ? "right" : "wrong"), run);
  head.append(element("span", "", response.step === null ? response.source : `${response.source}, step ${response.step}`));
  head.append(element("span", "", `score ${response.score === null ? "nan" : response.score}`));
  const answers = element("div", "answers");
  if (response.answer !== null) answers.append(labelled("Extracted answer", "", response.answer, words));
  if (response.gold) answers.append(labelled("Gold answer", "", response.gold, words));
  made.append(head, labelled("Prompt", "", response.prompt, words), labelled("Response", "text", response.text, words), answers);
  return made;
}

function refresh() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const [right, run, source] = ["right", "run", "source"].map((name) => document.getElementById(`filter-${name}`).value);
  const found = data.responses.filter((response) => {
    const text = [response.prompt, response.text, response.gold, response.answer || ""].join("\n").toLowerCase();
    return (
      words.every((word) => text.includes(word)) &&
      (!right || response.isRight === (right === "right")) &&
      (!run || response.run === run) &&
      (!source || response.source === source)
    );
  });
  list.replaceChildren(...found.slice(0, limit).map((response) => card(response, words)));
  document.getElementById("count").textContent =
    `${found.length} of ${data.responses.length} responses` + (found.length > limit ? `, ${limit} shown` : "");
  document.getElementById("more").hidden = found.length <= limit;
}

if (search) {
  const form = document.getElementById("filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    limit = PAGE;
    refresh();
  });
  document.getElementById("more").addEventListener("click", () => {
    limit += PAGE;
    refresh();
  });
  refresh();
}

if (data.refreshS) {
  setInterval(() => {
    const isReading = ["INPUT", "SELECT"].includes(document.activeElement.tagName) || (search && search.value);
    if (!isReading && !document.hidden) location.reload();
  }, data.refreshS * 1000);
}
