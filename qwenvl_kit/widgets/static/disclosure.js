// A button that opens and closes what stands below it.

function render({ model, el }) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "qwenvl-disclosure";
  el.append(button);

  function show() {
    const open = model.get("opened");
    button.textContent = `${open ? "▾" : "▸"} ${model.get("label")}`;
    button.setAttribute("aria-expanded", String(open));
  }

  button.addEventListener("click", () => {
    model.set("opened", !model.get("opened"));
    model.save_changes();
  });
  for (const name of ["opened", "label"]) model.on(`change:${name}`, show);
  show();
}

export default { render };
