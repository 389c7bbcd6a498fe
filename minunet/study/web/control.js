// Settings, keys and the conversation with the server: what is asked, what came back, what is wrong with it.
"use strict";

const EXPLAIN = "explain", WAIT = 300;          // ms after the last key in a field

// ---- the request: settings as they stand in the fields, numbers as they stand in the cells

function field(text) {              // "3", "3x2" or what else was typed: the server says what is wrong with it
  const pair = text.trim().split(/[x×]/i).map(part => /^[+-]?\d+$/.test(part.trim()) ? Number(part) : null);
  if (pair.includes(null) || pair.length > 2) return text.trim();
  return pair.length === 1 ? pair[0] : pair;
}

const fieldText = (name, [height, width]) => height === width && name !== "size" ? String(height) : `${height}x${width}`;
const inFields = ({channels: [c, f], ...settings}) => ({...settings, channels: [c, c], filters: [f, f]});
const number = text => text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text.trim();
const same = (a, b) => JSON.stringify([a].flat().length === 1 ? [a, a].flat() : a) === JSON.stringify(b);

function numbers(name) {            // as a button named them or as typed, otherwise exactly as they came
  if (name in state.named) return state.named[name];
  return state.look.edits[name].length ? state.look.edits[name].map(node =>
    node.value === node.edit.shown ? node.edit.exact : number(node.value)) : state.data[name].values;
}

function request() {
  const {settings, weight, x, y, Ax} = state.data, transposed = $("transposed").checked;
  const asked = {transposed};
  for (const name of Object.keys(FIELDS)) {
    if (transposed || name !== "output_padding") asked[name] = field($(name).value);
  }
  asked.channels = [asked.channels, asked.filters];
  delete asked.filters;
  // numbers are kept where they still fit; the others are made anew
  const channels = same(asked.channels, settings.channels);
  const geometry = channels && ["kernel", "stride", "padding", "dilation"].every(name => same(asked[name], settings[name]));
  const input = channels && same(asked.size, (transposed ? y : x).shape.slice(0, 2));
  const all = geometry && input && (!transposed || same(asked.output_padding, settings.output_padding));
  if (channels && same(asked.kernel, weight.shape.slice(0, 2))) asked.weight = numbers("weight");
  if (all || input && !transposed) asked.x = numbers("x");
  if (all || input && transposed) asked.y = numbers("y");
  return asked;
}

async function ask(asked) {
  const turn = ++state.turn;
  let answer;
  try {
    const response = await fetch(EXPLAIN, {method: "POST", headers: {"Content-Type": "application/json"},
                                           body: JSON.stringify(asked)});
    answer = await response.json();
  } catch {
    answer = {error: "the server does not answer; start minunet explain --serve again and reload this page"};
  }
  if (turn !== state.turn) return;              // something newer was asked meanwhile
  state.named = {};
  complain(answer.error ?? "");
  if (!answer.error) {
    show(answer);
    history.replaceState(null, "", `#${fragment(answer.settings)}`);
  }
}

function complain(sentence) {
  if ($("error").textContent !== sentence) $("error").textContent = sentence;
  // a sentence about a setting begins with its name; what is wrong is that, or whatever else was changed
  const about = /^\w+(?=[ :])/.exec(sentence)?.[0], settings = inFields(state.data.settings);
  const changed = Object.keys(FIELDS).filter(name => !same(field($(name).value), settings[name]));
  const named = changed.filter(name => about === (name === "filters" ? "channels" : name));
  const wrong = named.length ? named : about in FIELDS || about === "This" ? changed : [];
  for (const name of Object.keys(FIELDS)) $(name).setAttribute("aria-invalid", wrong.includes(name));
  for (const [name, nodes] of Object.entries(state.look.edits)) {
    nodes.forEach((node, i) => node.setAttribute("aria-invalid", sentence.startsWith(
      `${name === "weight" ? "kernel" : name}${at(state.data[name].shape, i)} `)));
  }
}

// ---- a link to the case: the settings behind the #

function fragment(settings) {
  return Object.entries(settings).filter(([name]) => settings.transposed || name !== "output_padding")
    .map(([name, value]) => `${name}=${name in FIELDS || name === "channels" ? value.join("x")
      : Array.isArray(value) ? value.join(",") : Number(value)}`).join("&");
}

function fromFragment(text) {
  const asked = {};
  for (const [name, value] of new URLSearchParams(text)) {
    asked[name] = name === "transposed" ? {0: false, 1: true}[value] ?? value
      : name in state.look.edits ? value.split(",").map(number) : field(value);
  }
  return asked;
}

// ---- showing an answer

function show(data) {
  const {transposed} = data.settings, before = state.data, focused = document.activeElement;
  const place = focused?.classList.contains("cell") && {
    name: focused.closest(".cells").dataset.name, row: focused.dataset.row, column: focused.dataset.column,
    typed: focused.edit && focused.value !== focused.edit.shown ? focused.value : null};
  if (before?.settings.transposed !== transposed) {
    stop();
    Object.assign(state, {by: transposed ? "inputs" : "outputs", step: null});
  }
  Object.assign(state, {data, hover: null, focus: null});
  $(transposed ? "transposed" : "convolution").checked = true;
  $(`by-${state.by}`).checked = true;
  document.querySelector("label[for=size]").textContent = transposed ? "Windows y" : "Image x";
  for (const name of Object.keys(FIELDS)) {
    if ($(name) !== focused || data.fixed) $(name).value = fieldText(name, inFields(data.settings)[name]);
  }
  document.querySelector("[data-numbers=bilinear]").disabled = !data.bilinear;
  document.querySelectorAll("#field-output_padding :is(input, button)")
    .forEach(node => { node.disabled = !transposed || Boolean(data.fixed); });
  draw();
  if (state.step !== null && state.step >= steps()) state.step = null;
  showNumbers();
  if (place) {
    const within = `[data-row="${place.row}"][data-column="${place.column}"]`;
    const node = document.querySelector(`[data-name="${place.name}"] ${within}`);
    node?.focus();
    if (node?.edit && place.typed !== null) node.value = place.typed;
  }
  paint();
}

function setUpFields() {
  for (const [name, label] of Object.entries(FIELDS)) {
    const input = attributes(element("input", {id: name, type: "text"}), {autocomplete: "off", inputmode: "text"});
    const stepper = (by, sign, words) => {
      const button = element("button", {type: "button", textContent: sign});
      button.setAttribute("aria-label", `${words} ${label.toLowerCase()}`);
      button.addEventListener("click", () => {
        const value = [field(input.value)].flat();
        if (value.some(n => typeof n !== "number")) return ask(request());
        input.value = fieldText(name, value.length === 1 ? [value[0] + by, value[0] + by] : value.map(n => n + by));
        ask(request());
      });
      return button;
    };
    $("fields").append(attributes(element("div", {className: "field", id: `field-${name}`},
      attributes(element("label", {textContent: label}), {for: name}),
      element("span", {className: "stepper"}, stepper(-1, "−", "Smaller"), input, stepper(1, "+", "Larger"))), {}));
    let waiting;
    input.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => ask(request()), WAIT);
    });
  }
  for (const button of document.querySelectorAll("#presets button")) {      // without a name: made anew
    button.addEventListener("click", () => {
      const {name, numbers} = button.dataset;
      state.named[name] = numbers;      // until it is answered: another button may be quicker
      ask({...request(), ...state.named});
    });
  }
  $("settings").addEventListener("submit", event => { event.preventDefault(); ask(request()); });
  for (const id of ["convolution", "transposed"]) {
    $(id).addEventListener("change", () => {        // the same matrix, looked at from its other side
      const {x, y, settings} = state.data, {transposed} = settings;
      $("size").value = ($("transposed").checked ? y : x).shape.slice(0, 2).join("x");
      for (const name of Object.keys(FIELDS).slice(1)) $(name).value = fieldText(name, inFields(settings)[name]);
      if ($("transposed").checked !== transposed) ask(request());
    });
  }
}

function setUpPlayer() {
  const click = (id, action) => $(id).addEventListener("click", action);
  click("back", () => { stop(); move(-1); });
  click("forward", () => { stop(); move(1); });
  click("play", play);
  click("all", () => { stop(); go(null); });
  $("step").addEventListener("input", () => { stop(); go(Number($("step").value)); });
  for (const by of ["inputs", "outputs"]) {
    $(`by-${by}`).addEventListener("change", () => { stop(); state.by = by; go(null); });
  }
}

// ---- pointing and keys

function setUpPointing() {
  const under = event => event.target.closest?.(".cell")?.dataset.key ?? null;
  document.addEventListener("pointerover", event => {
    if (state.hover === under(event)) return;
    state.hover = under(event);
    paint();
  });
  document.documentElement.addEventListener("pointerleave", () => { state.hover = null; paint(); });
  document.addEventListener("focusin", event => {
    const cell = event.target.closest(".cell");
    state.focus = cell?.dataset.key ?? null;
    if (cell) {
      cell.closest(".cells").querySelectorAll("[tabindex='0']").forEach(node => { node.tabIndex = -1; });
      cell.tabIndex = 0;
      if (cell.edit) cell.select();
    }
    paint();
  });
  document.addEventListener("focusout", event => { if (!event.relatedTarget) { state.focus = null; paint(); } });
  document.addEventListener("change", event => { if (event.target.edit) ask(request()); });
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const {target, key} = event, cell = target.closest(".cell");
    if (key === "Escape") {
      if (cell?.edit) cell.value = cell.edit.shown;
      stop();
      target.blur();
      go(null);
    } else if (cell && key.startsWith("Arrow")) {
      const dirty = cell.edit && cell.value !== cell.edit.shown;
      if (dirty && (key === "ArrowLeft" || key === "ArrowRight")) return;     // moves in the text
      event.preventDefault();
      neighbour(cell, key)?.focus();
    } else if (key === " " && !target.closest("button, #settings input, .choice input")) {
      event.preventDefault();
      play();
    } else if ((key === "ArrowLeft" || key === "ArrowRight") && !target.closest("input")) {
      event.preventDefault();
      stop();
      move(key === "ArrowLeft" ? -1 : 1);
    }
  });
}

function neighbour(cell, key) {     // the next cell of a grid in the direction of an arrow, over gaps
  const cells = [...cell.closest(".cells").querySelectorAll(".cell")];
  const [along, across] = /Left|Right/.test(key) ? ["column", "row"] : ["row", "column"];
  const sign = /Left|Up/.test(key) ? -1 : 1, start = Number(cell.dataset[along]);
  return cells.filter(other => other.dataset[across] === cell.dataset[across])
    .filter(other => (other.dataset[along] - start) * sign > 0)
    .sort((a, b) => (a.dataset[along] - b.dataset[along]) * sign)[0];
}

function fix() {                    // a file without a server: the settings are shown and cannot change
  document.querySelectorAll("#settings :is(input, button)").forEach(node => { node.disabled = true; });
  $("invitation").textContent = "";
  $("presets").hidden = true;
  $("note").textContent = "This file shows one case, in which everything can be pointed at and played. To change the " +
    "settings, run the command at the end of the page.";
}

setUpFields();
setUpPlayer();
setUpPointing();
show(JSON.parse($("data").textContent));
if (state.data.fixed) {
  fix();
} else {
  const follow = () => { if (location.hash.length > 1) ask(fromFragment(location.hash.slice(1))); };
  window.addEventListener("hashchange", follow);
  follow();
}
let width = innerWidth;
window.addEventListener("resize", () => {
  if (innerWidth !== width) { width = innerWidth; show(state.data); }
});
