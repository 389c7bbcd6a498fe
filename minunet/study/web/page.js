// The explaining page. Every number is computed by minunet/study/page.py; here it is looked up, drawn and lit.
//
// A cell stands for something, named by its key: w:ROW a window (a row of A), p:CELL a cell of the padded image,
// k:ELEMENT of the kernel, m:ROW,CELL an entry of the matrix, c:ENTRY of the column matrix, s:CELL of the image
// with zeros in between. What is in play lights what it meets: data.links are the triples [window, cell, element].
"use strict";

const FIELDS = {size: "Image", kernel: "Kernel", stride: "Stride", padding: "Padding", dilation: "Dilation",
                output_padding: "Output padding", channels: "Channels", filters: "Filters"};
const FACES = {
  convolution: [
    ["Slide the kernel", "Each window of the image is multiplied by the kernel, cell by cell, and added up. As " +
     "everywhere in deep learning the kernel is not turned; mathematicians call this cross-correlation."],
    ["Columns (im2col)", "Each window lies flat in a row, the kernel lies flat above. A result is its row times the " +
     "row above: one matrix product."],
    ["The matrix A", "The image lies flat above. A row of A holds the kernel's numbers where its window meets the " +
     "image, and zeros elsewhere."]],
  transposed: [
    ["Stamp the kernel", "Each number stamps the kernel, times itself, onto the image. " +
     "Stamps add up; what falls into the padding is cut off."],
    ["Zeros in between, kernel turned", "The usual drawing: zeros between the numbers and around them, then a plain " +
     "convolution with the kernel turned by 180°."],
    ["The matrix Aᵀ", "The convolution's matrix, transposed. y lies flat above; the column under a number is its " +
     "stamp, laid flat."]],
};
const TERMS = 12;                   // of a sum that is written out

const state = {data: null, look: null, by: null, step: null, hover: null, focus: null, timer: null, turn: 0,
               named: {}};

// ---- what meets what

function lookUp(data) {
  const look = {cellOf: [], by: {w: new Map(), p: new Map(), k: new Map(), c: new Map()}, reads: new Map(),
                readBy: new Map(), windowAt: new Map(), nodes: new Map(), outputs: [], products: [],
                edits: {weight: [], x: [], y: []}};
  data.frame.pixels.forEach((pixel, cell) => { if (pixel >= 0) look.cellOf[pixel] = cell; });
  const add = (map, key, value) => map.has(key) ? map.get(key).push(value) : map.set(key, [value]);
  data.links.forEach(([w, p, k], i) => {
    const link = {w, p, k, c: data.columns?.entries[i]};
    for (const kind of "wpkc") add(look.by[kind], link[kind], link);
  });
  for (const [pixel, cell] of data.reads ?? []) {
    add(look.reads, look.cellOf[pixel], cell);
    add(look.readBy, cell, look.cellOf[pixel]);
  }
  (data.stuffed?.windows ?? []).forEach((w, cell) => { if (w >= 0) look.windowAt.set(w, cell); });
  return look;
}

function meetings(key) {            // the links of what is in play, and the keys of all that is lit
  const {data, look} = state;
  const [kind, place] = key.split(":");
  const [a, b] = place.split(",").map(Number);
  if (kind === "s" && data.stuffed.windows[a] >= 0) return meetings(`w:${data.stuffed.windows[a]}`);
  let links = [];
  if (look.by[kind]) links = look.by[kind].get(a) ?? [];
  if (kind === "m") links = (look.by.w.get(a) ?? []).filter(link => link.p === b);
  const lit = new Set([key]), band = new Set();
  for (const {w, p, k, c} of links) {
    for (const also of [`w:${w}`, `p:${p}`, `k:${k}`, `m:${w},${p}`, `c:${c}`]) lit.add(also);
    if (kind !== "p" && look.windowAt.has(w)) lit.add(`s:${look.windowAt.get(w)}`);
  }
  if (kind === "m") [`w:${a}`, `p:${b}`].forEach(also => lit.add(also));
  if (kind === "p") (look.reads.get(a) ?? []).forEach(cell => lit.add(`s:${cell}`));
  if (kind === "s") (look.readBy.get(a) ?? []).forEach(p => lit.add(`p:${p}`));
  if (kind === "w") look.cellOf.forEach(p => band.add(`m:${a},${p}`));
  if (kind === "p") data.y.values.forEach((_, w) => band.add(`m:${w},${a}`));
  return {key, kind, a, b, links, lit, band};
}

// ---- the faces and what follows

function draw() {
  const {data} = state, {transposed} = data.settings, faces = [...document.querySelectorAll(".face")];
  state.look = lookUp(data);
  FACES[transposed ? "transposed" : "convolution"].forEach(([title, words], i) => {
    faces[i].querySelector("h2").textContent = title;
    faces[i].querySelector("p").textContent = i === 1 && transposed ? `${words} ${data.words.zeros}` : words;
  });
  const widths = [11, transposed ? 9 + data.stuffed.shape[1] / 2 : data.columns.shape[1] + 1, data.matrix.shape[1] + 1];
  $("faces").classList.toggle("broad", data.matrix.shape[1] > 24);
  $("faces").style.setProperty("--widths", widths.map(n => `minmax(0, ${Math.max(9, Math.min(17, n))}fr)`).join(" "));
  const hosts = [...faces.map(face => face.querySelector(".figures")),
                 ...["identity", "back-again"].map(id => $(id).querySelector(".figures"))];
  hosts.forEach(host => host.replaceChildren());
  (transposed ? drawTransposed : drawConvolution)(data, ...hosts);
  drawMatrix(data, hosts[2], transposed);
  drawFacts(data, ...hosts.slice(3), transposed);
  drawOverlap(data);
}

const keys = {window: w => `w:${w}`, element: k => `k:${k}`, pixel: i => `p:${state.look.cellOf[i]}`};
const pixel = index => ({key: keys.pixel(index)});
const window_ = index => ({key: keys.window(index)});

function drawKernel(data, host, space) {
  planes(host, "weight", "kernel", data.weight, "kernel",
         k => ({key: keys.element(k), edit: {name: "weight", index: k}}));
  const blank = {shape: data.weight.shape, values: data.weight.values.map(() => null)};
  planes(host, "products", "products", blank, space,
         k => ({key: keys.element(k), product: k, scale: scaleOf(data.products.flat())}));
}

function drawConvolution(data, slide, columns) {
  const {pixels} = data.frame, {cells, elements, windows} = data.columns;
  planes(slide, "input", "x, the image", data.frame, "image", p => pixels[p] < 0
    ? {key: `p:${p}`, padding: "around"} : {key: `p:${p}`, edit: {name: "x", index: pixels[p]}});
  drawKernel(data, slide, "windows");
  planes(slide, "result-0", "A x", data.Ax, "windows", w => ({...window_(w), output: {face: 0, index: w}}));
  const width = data.columns.shape[1];
  scheme(columns, "columns", "kernel above, windows as rows, A x", {
    ...data.columns, cell: (o, j) => {
      const entry = o * width + j;
      return {key: `c:${entry}`, space: "image", padding: pixels[cells[entry]] < 0 ? "around" : null};
    }}, {
    shape: [elements.length, width], values: data.weight.values,
    cell: (f, j) => {
      const k = elements[f][j];
      return {value: data.weight.values[k], key: keys.element(k), space: "kernel"};
    }}, {
    shape: [windows.length, elements.length], values: data.Ax.values,
    cell: (o, f) => result(1, windows[o][f], "windows")});
}

function drawTransposed(data, stamp, between) {
  const {pixels} = data.frame;
  planes(stamp, "input", "y, the input", data.y, "windows", w => ({...window_(w), edit: {name: "y", index: w}}));
  drawKernel(data, stamp, "image");
  planes(stamp, "result-0", "Aᵀ y", data.frame, "image", p => ({
    key: `p:${p}`, padding: pixels[p] < 0 ? "cut" : null, output: {face: 0, index: p}}));
  planes(between, "stuffed", "y with zeros", data.stuffed, "windows", s => {
    const w = data.stuffed.windows[s];
    return {key: `s:${s}`, zero: w < 0};
  });
  planes(between, "turned", "kernel, turned", data.turned, "kernel", k => ({key: keys.element(data.turned.elements[k])}));
  planes(between, "result-1", "Aᵀ y", {...data.ATy, values: data.results[1]}, "image", i => ({
    ...pixel(i), output: {face: 1, index: i}}));
}

function result(face, index, space) {
  const key = space === "windows" ? keys.window(index) : keys.pixel(index);
  return {value: state.data.results[face][index], key, space, output: {face, index}};
}

function drawMatrix(data, host, transposed) {
  const [rows, columns] = data.matrix.shape, input = transposed ? data.y : data.x, {look} = state;
  const met = new Set(data.links.map(([w, p]) => `m:${w},${p}`));
  scheme(host, "matrix", transposed ? "y above, Aᵀ, Aᵀ y" : "x above, A, A x", {
    ...data.matrix, cell: (row, column) => {
      const key = transposed ? `m:${column},${look.cellOf[row]}` : `m:${row},${look.cellOf[column]}`;
      return {key, zero: !met.has(key)};
    }}, {
    shape: [1, columns], values: input.values,
    cell: (_, i) => ({value: input.values[i], space: transposed ? "windows" : "image",
                      ...transposed ? window_(i) : pixel(i)})}, {
    shape: [rows, 1], values: data.results[2], cell: row => result(2, row, transposed ? "image" : "windows")});
}

function drawFacts(data, identity, back, transposed) {
  const edit = (name, yes, options) => index => ({...options(index), ...yes && {edit: {name, index}}});
  planes(identity, "x", "x", data.x, "image", edit("x", transposed, pixel));
  planes(identity, "y", "y", data.y, "windows", edit("y", !transposed, window_));
  planes(identity, "Ax", "A x", data.Ax, "windows", window_);
  planes(identity, "ATy", "Aᵀ y", data.ATy, "image", pixel);
  planes(back, "x-again", "x", data.x, "image", pixel);
  planes(back, "ATAx", "Aᵀ(A x)", data.ATAx, "image", pixel);
  const [left, right] = data.identity;
  const texts = {summary: data.words.summary, left: long(left), right: long(right), equal: data.words.identity,
                 sizes: data.words.sizes, "not-inverse": data.words.back};
  for (const [id, text] of Object.entries(texts)) $(id).textContent = text;
  $("command").replaceChildren(...data.command.split(/ (?=--)/).flatMap(text => [element("span", {textContent: text}), " "]));
}

// ---- what is in play

const steps = () => (state.by === "inputs") === state.data.settings.transposed ? state.data.y.values.length
  : state.data.x.values.length;

function stepKey() {
  if (state.step === null) return null;
  return (state.by === "inputs") === state.data.settings.transposed ? keys.window(state.step) : keys.pixel(state.step);
}

function paint() {                  // light what is in play: pointed at, else focused, else the step
  const {data, look} = state, key = state.hover ?? state.focus ?? stepKey();
  for (const node of document.querySelectorAll(".main, .lit, .band")) node.classList.remove("main", "lit", "band");
  $("faces").classList.toggle("playing", key !== null);
  $("facts").classList.toggle("playing", key !== null);
  look.products.forEach(node => write(node, null));
  if (key === null) {
    const typing = data.fixed ? "" : "type into an underlined one, ";
    $("readout").textContent = `Point at a cell, ${typing}or press space to play.`;
    return;
  }
  const found = meetings(key);
  const mark = (keys_, name) => keys_.forEach(k => look.nodes.get(k)?.forEach(node => node.classList.add(name)));
  mark(found.band, "band");
  mark(found.lit, "lit");
  mark(new Set([key, found.key]), "main");
  if (found.kind !== "k") {             // an element has a product in each window
    for (const {w, p, k} of found.links) {
      write(look.products[k], data.settings.transposed ? data.products[w][p] : data.products[p][w]);
    }
  }
  $("readout").replaceChildren(...readout(found));
}

function readout({kind, a, b, links}) {             // what is in play, in one line
  const {data, look} = state, {transposed} = data.settings, {pixels} = data.frame;
  const mark = (space, text) => element("b", {className: space, textContent: text});
  const weight = k => mark("kernel", short(data.weight.values[k]));
  const inner = links.filter(({p}) => pixels[p] >= 0), outside = links.length - inner.length;
  const xName = p => `${transposed ? "Aᵀy" : "x"}${at(data.x.shape, pixels[p])}`;
  const wName = w => `${transposed ? "y" : "Ax"}${at(data.y.shape, w)}`;
  const sum = (name, space, value, factor) => [
    mark(space, name), " = ",
    ...inner.slice(0, TERMS).flatMap((link, i) => [i ? " + " : "", factor(link), "·", weight(link.k)]),
    inner.length > TERMS ? ` + … (${inner.length} products)` : inner.length ? "" : "0 (nothing meets it)", " = ",
    mark(space, long(value)), outside ? element("small", {textContent: `  and ${outside} in the padding`}) : ""];
  if (kind === "k") {
    return [mark("kernel", `kernel${at(data.weight.shape, a)} = ${long(data.weight.values[a])}`),
            links.length === 1 ? " is used once, by the only window"
              : ` is used ${links.length} times, once by each window`,
            outside ? `, ${outside} of them in the padding.` : "."];
  }
  if (kind === "s") return ["A zero that is put in: it is multiplied, and adds nothing."];
  if (kind === "m" || kind === "c") {
    const {w, p} = links[0] ?? {w: a, p: b};
    const pair = [mark("windows", wName(w)), " and ", mark("image", pixels[p] < 0 ? "padding" : xName(p))];
    if (!links.length) return [...pair, " do not meet: a zero of the matrix."];
    const {k} = links[0], value = long(data.weight.values[k]);
    return [...pair, " meet with ", mark("kernel", `kernel${at(data.weight.shape, k)} = ${value}`),
            links.length > 1 ? ", and likewise in each filter." : "."];
  }
  if (kind === "p" && pixels[a] < 0) {
    return [transposed ? "What is stamped into the padding is cut off." : "Padding: a zero around the image."];
  }
  if (kind === "w" && !transposed) {
    return sum(wName(a), "windows", data.Ax.values[a], ({p}) => mark("image", short(data.x.values[pixels[p]])));
  }
  if (kind === "p" && transposed) {
    return sum(xName(a), "image", data.ATy.values[pixels[a]], ({w}) => mark("windows", short(data.y.values[w])));
  }
  const [space, name, value] = kind === "w" ? ["windows", wName(a), data.y.values[a]]
    : ["image", xName(a), data.x.values[pixels[a]]];
  const targets = kind === "w" ? inner.map(({p, k}) => [weight(k), " to ", mark("image", xName(p))])
    : inner.map(({w, k}) => [weight(k), " to ", mark("windows", wName(w))]);
  return [mark(space, `${name} = ${long(value)}`), targets.length ? " goes, times " : " goes nowhere",
          ...targets.slice(0, 6).flatMap((target, i) => [i ? ", " : "", ...target]),
          targets.length > 6 ? ` … (${targets.length} places)` : "",
          outside ? element("small", {textContent: `  and ${outside} into the padding, cut off`}) : ""];
}

function showNumbers() {            // the results up to the step
  const {data, look, step} = state, {transposed} = data.settings, {pixels} = data.frame;
  for (const {node, face, index} of look.outputs) {
    const onFrame = transposed && face === 0, n = onFrame ? pixels[index] : index;
    let value = data.results[face][index];
    if (step !== null && state.by === "outputs") value = n >= 0 && n <= step ? value : null;
    if (step !== null && state.by === "inputs") {
      value = transposed ? data.running[step][onFrame ? index : look.cellOf[index]]
        : data.running[look.cellOf[step]][index];
    }
    write(node, value, {padding: onFrame && n < 0 ? "cut" : null});
  }
  const total = steps();
  $("step").max = total - 1;
  $("step").value = step ?? total - 1;
  $("count").textContent = step === null ? (total === 1 ? `the only ${state.by.slice(0, -1)}` : `all ${total} ${state.by}`)
    : `${state.by === "inputs" ? "input" : "output"} ${step + 1} of ${total}`;
}

function go(step) {
  state.step = step === null ? null : Math.max(0, Math.min(steps() - 1, step));
  state.hover = null;
  showNumbers();
  paint();
}

function move(by) {
  go(state.step === null ? (by > 0 ? 0 : steps() - 1) : state.step + by);
}

function stop() {
  clearInterval(state.timer);
  state.timer = null;
  $("play").textContent = "Play";
}

function play() {
  if (state.timer) return stop();
  if (state.step === null || state.step === steps() - 1) go(0);
  $("play").textContent = "Pause";
  state.timer = setInterval(() => {
    move(1);
    if (state.step === steps() - 1) stop();
  }, Math.max(150, Math.min(900, 24000 / steps())));
}
