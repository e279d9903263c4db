"use strict";
(async () => {
  const root = document.documentElement;
  const json = (id) => JSON.parse(document.getElementById(id).textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const palettes = json("palettes");
  const figures = json("figures");

  // Plotly is packed, because unpacked it would be three times the page.
  async function unpack(id) {
    const packed = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  // A string that names a colour of the palette becomes that colour, wherever it stands.
  function coloured(value, palette) {
    if (typeof value === "string") return Object.hasOwn(palette, value) ? palette[value] : value;
    if (Array.isArray(value)) return value.map((one) => coloured(one, palette));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, coloured(one, palette)]));
  }

  async function draw(palette, config = { displayModeBar: false, responsive: true, scrollZoom: false }) {
    for (const plot of document.querySelectorAll(".plot")) {
      const { data, layout } = coloured(figures[plot.dataset.figure], palette);
      await Plotly.react(plot, data, layout, config);
    }
  }

  const screen = () => draw(palettes[dark.matches ? "dark" : "light"]);
  try {
    await unpack("plotly");
    await screen();
    root.dataset.charts = "drawn";
  } catch (error) {
    root.dataset.charts = "failed";
    throw error;
  }
  dark.addEventListener("change", screen);
  // Paper is white and of another width.
  addEventListener("beforeprint", () => {
    root.classList.add("printing");
    draw(palettes.light);
    document.querySelectorAll(".plot").forEach((plot) => Plotly.Plots.resize(plot));
  });
  addEventListener("afterprint", () => {
    root.classList.remove("printing");
    screen();
    document.querySelectorAll(".plot").forEach((plot) => Plotly.Plots.resize(plot));
  });
})();
