// Two pictures in one frame, divided by a slider: what the model sees under one setting and under another.
// The slider is a range input, so that keys, screen readers and touch work as they do everywhere.

function element(tag, className, parent) {
  const made = document.createElement(tag);
  made.className = className;
  parent.append(made);
  return made;
}

function render({ model, el }) {
  const root = element("div", "qwenvl-before-after", el);
  root.addEventListener("keydown", (event) => event.stopPropagation()); // JupyterLab takes the arrow keys otherwise
  const stage = element("div", "stage", root);
  const after = element("img", "after", stage);
  const before = element("img", "before", stage);
  const line = element("div", "line", stage);
  const slider = element("input", "slider", root);
  const legend = element("div", "legend", root);
  const left = element("span", "left", legend);
  const right = element("span", "right", legend);
  for (const image of [after, before]) image.draggable = false;
  Object.assign(slider, { type: "range", min: 0, max: 100, step: 1 });

  function divide() {
    const share = model.get("position");
    before.style.clipPath = `inset(0 ${100 - share}% 0 0)`;
    line.style.left = `${share}%`;
    slider.value = share;
    slider.setAttribute("aria-valuetext", `${share} % ${model.get("before_label")}`);
  }

  function show() {
    before.src = model.get("before");
    after.src = model.get("after");
    before.alt = `${model.get("alt")}: ${model.get("before_label")}`;
    after.alt = `${model.get("alt")}: ${model.get("after_label")}`;
    left.textContent = `◧ ${model.get("before_label")}`;
    right.textContent = `${model.get("after_label")} ◨`;
    slider.setAttribute("aria-label", `Divide ${model.get("before_label")} from ${model.get("after_label")}`);
    root.hidden = !model.get("before");
    divide();
  }

  function move(share) {
    model.set("position", Math.round(Math.min(100, Math.max(0, share))));
    model.save_changes();
  }

  function drag(event) {
    if (event.type === "pointermove" && !(event.buttons & 1)) return;
    const box = stage.getBoundingClientRect();
    move((100 * (event.clientX - box.left)) / box.width);
  }

  slider.addEventListener("input", () => move(Number(slider.value)));
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  stage.addEventListener("pointermove", drag);
  for (const name of ["before", "after", "before_label", "after_label", "alt"]) model.on(`change:${name}`, show);
  model.on("change:position", divide);
  show();
}

export default { render };
