// Grids of cells with numbers: one grid for each channel of an array, and Falk's scheme for a product of matrices.
"use strict";

const $ = id => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function attributes(node, values) {
  for (const [name, value] of Object.entries(values)) node.setAttribute(name, value);
  return node;
}

const long = value => String(Number.isInteger(value) ? value : Number(value.toPrecision(13)));

function short(value) {             // as short as its cell; what is cut off leaves a decimal point or an exponent
  const size = Math.abs(value), text = long(value);
  if (text.length <= 5 || size < 1e5 && !/[.e]/.test(text)) return text;
  if (size < .01 || size >= 99999) return value.toExponential(1).replace("+", "");
  return value.toFixed(Math.max(1, 2 - Math.floor(Math.log10(size))));
}

function at(shape, index) {         // the subscript of a flat index: [1, 2], with its channel where there are several
  const places = [];
  for (const n of [...shape].reverse()) {
    places.unshift(index % n);
    index = Math.floor(index / n);
  }
  return `[${places.filter((_, i) => i < 2 || shape[i] > 1).join(", ")}]`;
}

function grid(host, name, title, rows, columns, cellAt, {above = 0, below = 0,
    beside = 0, width = host.clientWidth} = {}) {
  // cellAt(row, column) -> {value, key, space, ...} or null; rows above and below and columns beside stand a little apart
  const specs = [], {look} = state;
  let longest = 1, editable = false;
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const spec = cellAt(row, column);
      specs.push(spec);
      if (typeof spec?.value === "number") longest = Math.max(longest, short(spec.value).length);
      editable ||= Boolean(spec?.edit);
    }
  }
  const apart = 8, available = width - 8 - (beside ? apart : 0);
  const fits = Math.min(36, Math.floor(available / columns), Math.max(20, Math.floor(480 / rows)));
  const size = Math.max(fits, editable ? 26 : 6);
  const font = Math.min(size * .44, size * 1.4 / longest);
  const body = attributes(element("div", {className: font < 6.5 ? "cells tiny" : "cells"}),
                          {role: "grid", "aria-label": `${title}, ${rows} rows, ${columns} columns`, "data-name": name});
  const tracks = (n, before, after) => [before && `repeat(${before}, ${size}px) ${apart}px`,
    n - before - after && `repeat(${n - before - after}, ${size}px)`, after && `${apart}px repeat(${after}, ${size}px)`]
    .filter(Boolean).join(" ");
  body.style.gridTemplateRows = tracks(rows, above, below);
  body.style.gridTemplateColumns = tracks(columns, 0, beside);
  body.style.fontSize = `${font}px`;
  for (let row = 0; row < rows; row++) {
    const line = body.appendChild(attributes(element("div", {className: "row"}), {role: "row"}));
    for (let column = 0; column < columns; column++) {
      const spec = specs[row * columns + column];
      if (!spec) continue;
      const node = line.appendChild(cell(spec));
      attributes(node, {"data-row": row, "data-column": column, tabindex: -1});
      node.dataset.place = `row ${row}, column ${column}`;
      node.style.gridRow = row + 1 + (above && row >= above ? 1 : 0) + (below && row >= rows - below ? 1 : 0);
      node.style.gridColumn = column + 1 + (beside && column >= columns - beside ? 1 : 0);
      if (spec.key) look.nodes.has(spec.key) ? look.nodes.get(spec.key).push(node) : look.nodes.set(spec.key, [node]);
      if (spec.output) look.outputs.push({node, ...spec.output});
      if (spec.product !== undefined) look.products[spec.product] = node;
      write(node, spec.value, spec);
    }
  }
  body.querySelector(".cell")?.setAttribute("tabindex", 0);
  host.append(element("figure", {}, element("figcaption", {textContent: title}), body));
}

function cell(spec) {
  const classes = ["cell", spec.space, spec.zero && "zero", spec.padding && "padding", spec.padding === "cut" && "cut"];
  const editable = spec.edit && !state.data.fixed;
  const node = element(editable ? "input" : "div", {className: classes.filter(Boolean).join(" ")});
  if (spec.key) node.dataset.key = spec.key;
  node.scale = spec.scale;
  if (editable) {
    attributes(node, {inputmode: "decimal", autocomplete: "off", spellcheck: "false"});
    node.edit = {...spec.edit, exact: spec.value};
    state.look.edits[spec.edit.name][spec.edit.index] = node;
    return node;
  }
  return attributes(node, {role: "gridcell"});
}

function write(node, value, {zero, padding} = {}) {
  const text = value === null ? "" : zero ? "·" : short(value);
  if (node.edit) node.value = node.edit.shown = text;
  else node.textContent = text;
  node.setAttribute("aria-label", `${node.dataset.place}: ${value === null ? "empty" : zero ? "0" : long(value)}` +
                    (padding === "cut" ? ", cut off" : padding ? ", padding" : ""));
  node.style.setProperty("--value", padding || !value || !node.scale ? 0 : Math.min(1, Math.abs(value) / node.scale));
}

const scaleOf = values => values.reduce((top, v) => Math.max(top, Math.abs(v)), 0);

function planes(host, name, title, array, space, options, available = host.clientWidth) {
  // an array (height, width, channels...) as one grid a channel, side by side; options(index) -> more of each cell
  const [rows, columns, ...rest] = array.shape, depth = rest.reduce((a, b) => a * b, 1), scale = scaleOf(array.values);
  const side = Math.min(rest.at(-1) ?? 1, Math.max(1, Math.floor(available / (26 * columns))));
  const planesHost = host.appendChild(element("div", {className: "planes"}));
  planesHost.style.gridTemplateColumns = `repeat(${side}, max-content)`;
  for (let d = 0; d < depth; d++) {
    const place = rest.length > 1 ? `${Math.floor(d / rest[1])}, ${d % rest[1]}` : d;
    grid(planesHost, depth === 1 ? name : `${name}-${d}`, depth === 1 ? title : `${title} [·, ·, ${place}]`, rows, columns,
         (row, column) => {
           const index = (row * columns + column) * depth + d;
           return {value: array.values[index], space, scale, ...options(index)};
         }, {width: available / side - 14});
  }
}

function scheme(host, name, title, matrix, top, result) {
  // Falk's scheme: what is multiplied lies above the matrix, a row of results stands beside it
  const [rows, columns] = matrix.shape, scale = scaleOf(matrix.values), beside = result.shape[1];
  const topScale = scaleOf(top.values), resultScale = scaleOf(result.values), above = top.shape[0];
  grid(host, name, title, above + rows, columns + beside, (row, column) => {
    if (row < above) return column < columns ? {...top.cell(row, column), scale: topScale} : null;
    const r = row - above;
    if (column >= columns) return {...result.cell(r, column - columns), scale: resultScale};
    return {value: matrix.values[r * columns + column], scale, space: "kernel", ...matrix.cell(r, column)};
  }, {above, beside});
}
