"use strict";
// Draws the figures of the page: in its colours, for light and dark, with the groups that are switched on.
async function drawAll(packed) {
  const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
  packed.remove();

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");
  const hidden = new Set();
  let showsSeeds = false;

  const isSeeds = (trace) => trace.meta?.seeds_of !== undefined;
  const isVisible = (trace) => !hidden.has(trace.legendgroup) && (showsSeeds || !isSeeds(trace));

  function theme(layout) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const changes = {
      "font.color": color("--ink"),
      "font.family": getComputedStyle(document.body).fontFamily,
      "font.size": 12,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      "modebar.bgcolor": "rgba(0,0,0,0)",
      "modebar.color": color("--soft"),
      "modebar.activecolor": color("--ink"),
      "hoverlabel.bgcolor": color("--raised"),
      "hoverlabel.bordercolor": color("--line"),
      "hoverlabel.font.color": color("--ink"),
    };
    const axes = new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))]);
    for (const axis of axes) {
      changes[`${axis}.gridcolor`] = color("--grid");
      changes[`${axis}.linecolor`] = color("--line");
      changes[`${axis}.zerolinecolor`] = color("--line");
    }
    return changes;
  }

  function put(layout, changes) {
    for (const [path, value] of Object.entries(changes)) {
      const keys = path.split(".");
      const last = keys.pop();
      keys.reduce((place, key) => (place[key] ??= {}), layout)[last] = value;
    }
    return layout;
  }

  async function draw(plot) {
    if (plot.dataset.drawn) return;
    plot.dataset.drawn = "yes";
    const { data, layout = {} } = JSON.parse(plot.querySelector("script").textContent);
    const responsive = put(layout, { ...theme(layout), autosize: true });
    delete responsive.width;
    delete responsive.height;
    // A finger that scrolls the page must not zoom what it happens to touch.
    if (touch.matches) responsive.dragmode = false;
    for (const trace of data) {
      if (isSeeds(trace)) {
        const steps = data[trace.meta.seeds_of].x;
        trace.x = trace.y.map((_, place) => steps[place % (steps.length + 1)] ?? null);
      }
      if (isSeeds(trace) || hidden.has(trace.legendgroup)) trace.visible = isVisible(trace);
    }
    await Plotly.newPlot(plot, data, responsive, {
      responsive: true,
      displaylogo: false,
      displayModeBar: touch.matches ? false : "hover",
      showSendToCloud: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
    });
  }

  const drawn = () => document.querySelectorAll(".plot[data-drawn]");

  dark.addEventListener("change", () => {
    for (const plot of drawn()) Plotly.relayout(plot, theme(plot.layout));
  });

  for (const button of document.querySelectorAll(".toggles button")) {
    button.addEventListener("click", () => {
      const group = button.dataset.group;
      const shows = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shows));
      if (group === undefined) showsSeeds = shows;
      else if (shows) hidden.delete(group);
      else hidden.add(group);
      for (const plot of drawn()) {
        const wrong = [...plot.data.keys()].filter((index) => (plot.data[index].visible !== false) !== isVisible(plot.data[index]));
        if (wrong.length) Plotly.restyle(plot, { visible: wrong.map((index) => isVisible(plot.data[index])) }, wrong);
      }
    });
  }

  for (const folded of document.querySelectorAll("details")) {
    folded.addEventListener("toggle", () => {
      if (folded.open) folded.querySelectorAll(".plot").forEach(draw);
    });
  }

  for (const plot of document.querySelectorAll(".plot")) {
    if (!plot.closest("details:not([open])")) await draw(plot);
  }
}

(async () => {
  const packed = document.getElementById("plotly");
  try {
    if (packed) await drawAll(packed);
  } catch (error) {
    for (const plot of document.querySelectorAll(".plot:not([data-drawn])")) plot.textContent = `Not drawn: ${error}`;
    throw error;
  } finally {
    document.documentElement.dataset.ready = "yes";
  }
})();
