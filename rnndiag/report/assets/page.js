"use strict";
(() => {
  const special = ["no path", "exactly zero", "not finite", "below the range"];
  // A matrix picture is its own data: an uncompressed copy of its palette indices, read from the PNG when first asked for.
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
  const words = (image, index) => {
    if (index < 4) return special[index];
    const low = +image.dataset.low, high = +image.dataset.high;
    const value = low + ((index - 4) / 251) * (high - low);
    return image.dataset.log === "1" ? "10^" + value.toFixed(1) : value.toPrecision(2);
  };
  for (const figure of document.querySelectorAll("figure")) {
    const images = [...figure.querySelectorAll("image.matrix")], probe = figure.querySelector(".probe");
    const slider = figure.querySelector("[data-frames]");
    let shown = images[0];
    if (slider) {
      const output = figure.querySelector("output");
      slider.addEventListener("input", () => {
        images.forEach((image, k) => image.setAttribute("visibility", k === +slider.value ? "visible" : "hidden"));
        shown = images[+slider.value];
        output.textContent = shown.dataset.frame;
      });
    }
    if (!shown || !probe) continue;
    shown.ownerSVGElement.addEventListener("pointermove", async (event) => {
      const box = shown.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
      if (x < 0 || y < 0 || x >= 1 || y >= 1) return;
      shown.cells ??= await read(shown);
      const { width, height, rows } = shown.cells;
      const column = Math.floor(x * width), row = Math.floor(y * height);
      const index = rows[row * (width + 1) + column + 1];
      probe.textContent = `row ${height - 1 - row}, column ${column}: ${words(shown, index)}`;
    });
  }
})();
