// Draws the charts with the embedded plotly.js, in the colours of the style sheet.
"use strict";

let charts = {};
const PRINT_WIDTH = 700; // pixels that fit a page

// Replaces the names of colours by the colours.
function colored(value, style) {
  if (typeof value === "string" && value.startsWith("--")) return style.getPropertyValue(value).trim();
  if (Array.isArray(value)) return value.map((item) => colored(item, style));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, colored(item, style)]));
  }
  return value;
}

function draw(width) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  for (const [name, chart] of Object.entries(charts)) {
    const place = document.getElementById("chart-" + name);
    if (!place) continue;
    const given = chart.layout;
    const small = place.clientWidth < 500;
    const part = place.closest(".grid") !== null;
    const line = color("--grid");
    const axis = { gridcolor: line, zeroline: false, linecolor: line, automargin: true };
    const layout = {
      autosize: true,
      margin: part ? { l: 50, r: 10, t: 10, b: 45 } : { l: 70, r: 30, t: 40, b: 50 },
      paper_bgcolor: color("--paper"),
      plot_bgcolor: color("--paper"),
      font: { color: color("--ink"), size: small || part ? 11 : 13, family: "system-ui, sans-serif" },
      hoverlabel: { align: "left", font: { size: 12 } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      hovermode: "closest",
      ...given,
      xaxis: { ...axis, ...given.xaxis },
      yaxis: { ...axis, ...given.yaxis },
    };
    if (width) layout.width = part ? width / 2 - 10 : width;
    if (layout.height) place.style.height = layout.height + "px";
    const options = { responsive: !width, displayModeBar: false };
    // A copy, because plotly keeps its arguments.
    const { data, layout: painted } = colored(structuredClone({ data: chart.data, layout }), style);
    Plotly.react(place, data, painted, options);
  }
}

// Returns the text that an element of the page contains in compressed form.
function unpacked(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

// Delays the page's load event, so that it is not printed or captured without its charts: the event
// waits for the open document of a frame. Returns the function that ends the delay.
function holdLoading() {
  const frame = document.createElement("iframe");
  frame.hidden = true;
  document.body.append(frame);
  frame.contentDocument.open();
  return () => {
    frame.contentDocument.close();
    frame.remove();
  };
}

async function begin() {
  charts = JSON.parse(await unpacked("charts"));
  const script = document.createElement("script");
  script.textContent = await unpacked("library");
  document.head.append(script);
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("print");
    draw(PRINT_WIDTH);
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("print");
    draw();
  });
  document.documentElement.dataset.drawn = "yes";
}

const release = holdLoading();
begin()
  .catch((error) => {
    for (const place of document.querySelectorAll(".chart")) place.textContent = "No chart: " + error;
    throw error;
  })
  .finally(release);
