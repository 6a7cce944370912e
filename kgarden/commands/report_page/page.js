// The photos of a report: boxes as SVG, filtered by class, error kind and score.
// A detection is [x0, y0, x1, y1, label, score, verdict], an object [x0, y0, x1, y1, label, crowd];
// `found` of a run has the score of the detection that matches each object, or null.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("controls");
const SVG = "http://www.w3.org/2000/svg";
const CORRECT = ["right", "ignored"];

function element(name, attributes = {}, text = "") {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

function box([x0, y0, x1, y1, label], kind, note) {
  const node = element("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, class: kind });
  node.append(element("title", {}, `${data.classes[label].name}, ${note}`));
  return node;
}

// One photo with the boxes of one run; `update` shows those that the settings leave.
function view(photo, run) {
  const unit = Math.max(photo.width, photo.height) / 360;
  const svg = element("svg", { viewBox: `0 0 ${photo.width} ${photo.height}` });
  svg.append(element("image", { href: photo.jpeg, width: photo.width, height: photo.height }));
  const objects = photo.objects.map((one) => box(one, "object", one[5] ? "crowd" : "object"));
  const detections = run.detections.map((one) => box(one, one[6], `${one[5].toFixed(3)}, ${one[6]}`));
  const texts = run.detections.map((one) => {
    const text = `${data.classes[one[4]].name} ${one[5].toFixed(2)}`;
    return element("text", { x: one[0], y: Math.max(one[1] - 2 * unit, 11 * unit), style: `font-size: ${11 * unit}px` }, text);
  });
  svg.append(...objects, ...detections, ...texts);
  return {
    svg,
    update(settings) {
      const ofClass = (one) => settings.class === "" || one[4] === Number(settings.class);
      photo.objects.forEach((one, n) => {
        const lost = !one[5] && (run.found[n] === null || run.found[n] < settings.score);
        objects[n].classList.toggle("lost", lost);
        objects[n].toggleAttribute("hidden", !ofClass(one));
      });
      run.detections.forEach((one, n) => {
        const hidden = one[5] < settings.score || !ofClass(one);
        detections[n].toggleAttribute("hidden", hidden);
        texts[n].toggleAttribute("hidden", hidden);
      });
    },
  };
}

// What is wrong on a photo under the settings: the verdicts of shown detections, and "missed" for lost objects.
function mistakes(photo, run, settings) {
  const ofClass = (one) => settings.class === "" || one[4] === Number(settings.class);
  const wrong = run.detections.filter((one) => ofClass(one) && one[5] >= settings.score && !CORRECT.includes(one[6]));
  const lost = photo.objects.filter(
    (one, n) => ofClass(one) && !one[5] && (run.found[n] === null || run.found[n] < settings.score)
  );
  return [...wrong.map((one) => one[6]), ...lost.map(() => "missed")];
}

function present(photo, settings) {
  if (settings.class === "") return true;
  const label = Number(settings.class);
  const seen = (one) => one[4] === label && one[5] >= settings.score;
  return photo.objects.some((one) => one[4] === label) || photo.runs.some((run) => run.detections.some(seen));
}

function card(photo) {
  const figure = document.createElement("figure");
  figure.className = "photo";
  figure.dataset.id = photo.id;
  const caption = document.createElement("figcaption");
  const views = photo.runs.map((run) => view(photo, run));
  const row = document.createElement("div");
  row.className = "views";
  row.append(...views.map((one) => one.svg));
  figure.append(caption, row);
  return { photo, figure, caption, views };
}

const cards = data.photos.map(card);

function settingsOfForm() {
  const { sort, kind, score } = form.elements;
  return { sort: sort.value, class: form.elements.class.value, kind: kind.value, score: Number(score.value) };
}

function update() {
  const settings = settingsOfForm();
  form.querySelector("output").textContent = settings.score.toFixed(2);
  const shown = [];
  for (const one of cards) {
    const found = one.photo.runs.map((run) => mistakes(one.photo, run, settings));
    one.count = found.flat().length;
    const wanted = settings.kind === "" || found.flat().includes(settings.kind);
    one.figure.hidden = !(wanted && present(one.photo, settings));
    if (one.figure.hidden) continue;
    one.views.forEach((each) => each.update(settings));
    one.caption.textContent = `${one.photo.name}: ${found.map((each) => each.length).join(" and ")} mistakes`;
    shown.push(one);
  }
  const order = settings.sort === "worst" ? (a, b) => b.count - a.count : () => 0;
  shown.sort((a, b) => order(a, b) || a.photo.id - b.photo.id);
  document.getElementById("photos").append(...shown.map((one) => one.figure));
  document.getElementById("count").textContent = `${shown.length} of ${cards.length} photos`;
}

for (const [label, one] of data.classes.entries()) form.elements.class.add(new Option(one.name, label));
// settings may stand in the address: report.html#kind=missed&score=0.5
for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
  if (form.elements[name]) form.elements[name].value = value;
}
form.addEventListener("input", update);
form.addEventListener("submit", (event) => event.preventDefault());
update();
