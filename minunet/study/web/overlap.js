// The overlap: on this image, along one axis beside a case of the other kind, and in the answer to a y of ones.
"use strict";

const WHY = "Without padding: a row for each window, a column for each pixel, and where they meet the number of the " +
  "kernel's element. Below, by how many windows a pixel is met; and the same on an image, far from the border.";

function drawOverlap({overlap, pattern, words, x}) {
  const hosts = ["counts", "why", "answer"].map($), [counts, why, answer] = hosts, {cases} = pattern;
  hosts.forEach(host => host.replaceChildren());
  planes(counts, "overlap", "windows that meet each pixel", overlap, "image",
         index => ({key: keys.pixel(index * x.shape[2])}));
  $("verdict").textContent = words.overlap;
  $("why-words").textContent = cases.length ? WHY : "The pattern is too large to draw.";
  $("answer-words").textContent = words.answer;
  const top = scaleOf(cases.flatMap(({inside}) => inside.values));
  const sections = cases.map(({title}) => why.appendChild(
    element("section", {className: "case"}, element("h4", {textContent: title}))));
  cases.forEach(({axes, inside}, i) => {
    axes.forEach((axis, a) => drawAxis(sections[i], `axis-${i}-${a}`, axis));
    planes(sections[i], `inside-${i}`, "far from the border", inside, "image", () => ({scale: top}), 190);
  });
  if (pattern.answer) planes(answer, "answer", "Aᵀ y for y of ones", pattern.answer, "image", () => ({}),
                             Math.min(240, answer.clientWidth));
}

function drawAxis(host, name, {name: title, elements, counts}) {
  const [rows, columns] = elements.shape, scale = scaleOf(counts);
  grid(host, name, title, rows + 1, columns, (row, column) => {
    if (row === rows) return {value: counts[column], space: "image", scale};
    const value = elements.values[row * columns + column];
    return value < 0 ? {value: null, space: "kernel"} : {value, space: "kernel met"};
  }, {below: 1, width: Math.min(290, host.clientWidth)});
}
