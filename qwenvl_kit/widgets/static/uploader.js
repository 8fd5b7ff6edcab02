// A button that sends files to the kernel in slices, each after the one before has arrived: a single message of more than
// 10 MiB never arrives, and nobody is told (jupyter-widgets/ipywidgets#2522).

const SLICE = 1 << 20;

function render({ model, el }) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "jupyter-button widget-button qwenvl-upload";
  button.textContent = model.get("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "file", multiple: true, accept: "image/*", hidden: true });
  const told = document.createElement("span");
  told.className = "qwenvl-upload-told";
  el.append(button, input, told);
  let arrived = null;

  function send(content, slice) {
    return new Promise((resolve) => {
      arrived = resolve;
      model.send(content, undefined, slice ? [slice] : []);
    });
  }

  async function upload(files) {
    const accepted = await send({ kind: "begin", files: files.map((file) => ({ name: file.name, size: file.size })) });
    for (const at of accepted) {
      for (let start = 0; start < files[at].size; start += SLICE) {
        const slice = await files[at].slice(start, start + SLICE).arrayBuffer();
        told.textContent = ` ${files[at].name}: ${Math.round((100 * start) / files[at].size)} %`;
        await send({ kind: "slice", at }, slice);
      }
    }
    await send({ kind: "end" });
  }

  model.on("msg:custom", (answer) => arrived?.(answer.accepted));
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", async () => {
    const files = [...input.files];
    if (!files.length || button.disabled) return;
    button.disabled = true;
    try {
      await upload(files);
      told.textContent = "";
    } catch (error) {
      told.textContent = ` The upload failed: ${error.message}`;
    } finally {
      button.disabled = false;
      input.value = "";
    }
  });
}

export default { render };
