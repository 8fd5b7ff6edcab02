// A picture with the frame of every visual token over it; arrow keys and the pointer tell which token is where.

const SVG = "http://www.w3.org/2000/svg";

function line(parent, className, x1, y1, x2, y2) {
  const made = document.createElementNS(SVG, "line");
  for (const [name, value] of Object.entries({ x1, y1, x2, y2, class: className })) made.setAttribute(name, value);
  parent.append(made);
}

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "qwenvl-token-grid";
  root.addEventListener("keydown", (event) => event.stopPropagation()); // JupyterLab takes the arrow keys otherwise
  root.innerHTML = '<div class="stage" tabindex="0" role="application"><img><svg></svg><div class="token"></div></div>';
  const told = document.createElement("div");
  told.className = "told";
  told.setAttribute("role", "status");
  root.append(told);
  el.append(root);
  const [stage, image, svg, token] = [".stage", "img", "svg", ".token"].map((name) => root.querySelector(name));
  let at = [0, 0];

  function size() {
    return [model.get("rows"), model.get("columns")];
  }

  function mark() {
    const [rows, columns] = size();
    Object.assign(token.style, {
      left: `${(100 * at[1]) / columns}%`,
      top: `${(100 * at[0]) / rows}%`,
      width: `${100 / columns}%`,
      height: `${100 / rows}%`,
    });
    told.textContent = `${rows} × ${columns} = ${rows * columns} visual tokens; row ${at[0] + 1}, column ${at[1] + 1}`;
  }

  function show() {
    const [rows, columns] = size();
    root.hidden = !model.get("picture") || !rows || !columns;
    if (root.hidden) return;
    image.src = model.get("picture");
    image.alt = model.get("alt");
    stage.setAttribute("aria-label", `${model.get("alt")}; arrow keys walk over its visual tokens`);
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
    svg.setAttribute("preserveAspectRatio", "none");
    for (const kind of ["dark", "light"]) {
      for (let x = 1; x < columns; x++) line(svg, kind, x, 0, x, rows);
      for (let y = 1; y < rows; y++) line(svg, kind, 0, y, columns, y);
    }
    at = [Math.min(at[0], rows - 1), Math.min(at[1], columns - 1)];
    mark();
  }

  stage.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    at = at.map((value, axis) => Math.min(size()[axis] - 1, Math.max(0, value + step[axis])));
    mark();
  });
  stage.addEventListener("pointermove", (event) => {
    const box = stage.getBoundingClientRect();
    const share = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
    at = share.map((value, axis) => Math.min(size()[axis] - 1, Math.max(0, Math.floor(value * size()[axis]))));
    mark();
  });
  for (const name of ["picture", "rows", "columns", "alt"]) model.on(`change:${name}`, show);
  show();
}

export default { render };
