// Keys of a judgement, while the focus is in its panel: 1, 2, 3, space and z go to the kernel, and not to JupyterLab.

const KEYS = { 1: "first", 2: "second", 3: "tie", " ": "skip", z: "undo" };

function render({ model, el }) {
  const panel = document.createElement("div");
  panel.className = "qwenvl-judge";
  panel.tabIndex = 0;
  panel.setAttribute("role", "group");
  panel.setAttribute("aria-label", "Which answer is better? 1: the first, 2: the second, 3: a tie, space: skip, z: undo");
  const body = document.createElement("div");
  const buttons = document.createElement("div");
  buttons.className = "qwenvl-judge-keys";
  const told = document.createElement("div");
  told.setAttribute("role", "status");
  panel.append(body, buttons, told);
  el.append(panel);

  for (const [key, name, label] of [
    ["1", "first", "First is better"],
    ["2", "second", "Second is better"],
    ["3", "tie", "Tie"],
    ["space", "skip", "Skip"],
    ["z", "undo", "Undo"],
  ]) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "jupyter-button widget-button";
    button.textContent = `${label} (${key})`;
    button.addEventListener("click", () => model.send({ verdict: name }));
    buttons.append(button);
  }

  panel.addEventListener("keydown", (event) => {
    event.stopPropagation();
    const verdict = KEYS[event.key];
    if (!verdict || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " " && event.target.tagName === "BUTTON") return; // presses the button
    event.preventDefault();
    model.send({ verdict });
  });

  function show() {
    body.innerHTML = model.get("page"); // escaped by the kernel
    told.textContent = model.get("told");
  }

  for (const name of ["page", "told"]) model.on(`change:${name}`, show);
  show();
}

export default { render };
