"use strict";
(() => {
  const special = ["no path, or not recorded", "exactly zero", "not finite", "below the range"];
  // The picture is the data: its palette indices are read back from the PNG when first asked for.
  const read = async (image) => {
    const bytes = Uint8Array.from(atob(image.getAttribute("href").split(",")[1]), (c) => c.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const width = view.getUint32(16), height = view.getUint32(20);
    let at = 8, body = null;
    while (at < bytes.length) {
      const size = view.getUint32(at), kind = String.fromCharCode(...bytes.slice(at + 4, at + 8));
      if (kind === "IDAT") body = bytes.slice(at + 8, at + 8 + size);
      at += 12 + size;
    }
    const stream = new Blob([body]).stream().pipeThrough(new DecompressionStream("deflate"));
    return { width, height, rows: new Uint8Array(await new Response(stream).arrayBuffer()) };
  };
  const value = (image, index) => {
    if (index < 4) return special[index];
    const low = +image.dataset.low, high = +image.dataset.high;
    const found = low + ((index - 4) / 251) * (high - low);
    return image.dataset.log === "1" ? "10^" + found.toFixed(1) : found.toPrecision(2);
  };
  const place = (facts, cell, block) => {
    const name = (k) => facts.names.length ? facts.names[Math.min(k, facts.names.length - 1)] : facts.first + k * facts.every;
    const first = name(cell * block), last = name(cell * block + block - 1);
    return facts.label.replace(/ \(.*/, "") + " " + first + (last === first ? "" : " to " + last);
  };
  for (const figure of document.querySelectorAll("figure")) {
    const images = [...figure.querySelectorAll("image.matrix")], probe = figure.querySelector(".probe");
    const slider = figure.querySelector("[data-frames]");
    if (!images.length || !probe) continue;
    let shown = images[images.length - 1];
    const svg = shown.ownerSVGElement, x = JSON.parse(svg.dataset.x), y = JSON.parse(svg.dataset.y);
    if (slider) slider.addEventListener("input", () => {
      images.forEach((image, k) => image.setAttribute("visibility", k === +slider.value ? "visible" : "hidden"));
      shown = images[+slider.value];
      figure.querySelector("output").textContent = shown.dataset.frame;
      slider.setAttribute("aria-valuetext", shown.dataset.frame);
      probe.textContent = "\u00a0";
    });
    svg.addEventListener("pointermove", async (event) => {
      const image = shown, box = image.getBoundingClientRect();
      const across = (event.clientX - box.left) / box.width, down = (event.clientY - box.top) / box.height;
      if (across < 0 || down < 0 || across >= 1 || down >= 1) return;
      image.cells ??= await read(image);
      const { width, height, rows } = image.cells, [tall, wide] = image.dataset.block.split(" ").map(Number);
      const column = Math.floor(across * width), row = Math.floor(down * height);
      const index = rows[row * (width + 1) + column + 1];
      probe.textContent = `${place(y, height - 1 - row, tall)}, ${place(x, column, wide)}: ${value(image, index)}`;
    });
  }
  // The numbers of a figure as CSV: quoted where a cell holds a comma, a quote or a line break.
  const quoted = (text) => /[",\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  for (const button of document.querySelectorAll("[data-copy]")) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      const rows = [...button.parentElement.querySelectorAll("tr")];
      const text = rows.map((row) => [...row.cells].map((cell) => quoted(cell.textContent.trim())).join(",")).join("\n");
      try { await navigator.clipboard.writeText(text + "\n"); button.textContent = "Copied"; }
      catch { button.textContent = "The browser does not allow it"; }
      setTimeout(() => { button.textContent = "Copy as CSV"; }, 2000);
    });
  }
})();
