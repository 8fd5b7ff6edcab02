// The status of a panel, one line. Screen readers hear of starts and ends only; the line itself changes with every token.
// The panel's Run and Cancel disable each other, which drops the focus: it goes to the one that is left.

function render({ model, el }) {
  const line = document.createElement("div");
  line.className = "qwenvl-status";
  const spoken = document.createElement("div");
  spoken.className = "qwenvl-spoken";
  spoken.setAttribute("role", "status");
  spoken.setAttribute("aria-live", "polite");
  el.append(line, spoken);
  const panel = () => el.closest(".qwenvl-panel");
  let focused = null;

  function show() {
    const failed = model.get("tone") === "error";
    line.textContent = `${failed ? "⚠ " : ""}${model.get("value")}`;
    line.classList.toggle("error", failed);
  }

  function remember(event) {
    if (panel()?.contains(event.target)) focused = event.target;
  }

  function keepFocus() {
    const lost = document.activeElement === document.body || document.activeElement === focused;
    if (!lost || !focused?.disabled || !focused.closest(".qwenvl-run")) return;
    panel()?.querySelector(".qwenvl-run button:enabled")?.focus();
  }

  // Outside JupyterLab, which hides it by a style, the saved copy of the answers would stand below the panel.
  function hideSaved() {
    let around = panel();
    while (around && !around.querySelector(".qwenvl-saved")) around = around.parentElement;
    if (!around || around === document.body) return;
    for (const saved of around.querySelectorAll(".qwenvl-saved")) saved.hidden = true;
  }

  document.addEventListener("focusin", remember);
  for (const name of ["value", "tone"]) model.on(`change:${name}`, show);
  model.on("change:announcement", () => {
    spoken.textContent = model.get("announcement");
    setTimeout(keepFocus, 50);
    setTimeout(hideSaved, 500);
  });
  show();
  setTimeout(hideSaved, 500);
  return () => document.removeEventListener("focusin", remember);
}

export default { render };
