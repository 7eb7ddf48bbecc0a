// Figures with a slider.  A script of JSON in the page names its figure and its kind; the kind says how to draw it:
//
//   slider(data)               -> {label, steps, start}, positions 0 ... steps of a range input
//   look(data, position)       -> what is shown there: {value, legend: [{name, color, text}], ...}
//   draw(data, look, width)    -> an element of SVG
//
// The drawing takes the place of the picture, which stays for print and for readers without JavaScript.
"use strict";

const KINDS = {};

const mount = (script) => {
  const figure = document.getElementById(script.dataset.figure);
  const [kind, data] = [KINDS[script.dataset.kind], JSON.parse(script.textContent)];
  const { label, steps, start } = kind.slider(data);
  const place = document.createElement("div");
  place.className = "slider";
  place.innerHTML = `<label><span></span><output></output><input type="range" min="0"></label>
    <div class="drawing" role="img"></div><ul></ul>`;
  const [name, output, input, drawing, legend] = place.querySelectorAll("span, output, input, .drawing, ul");
  name.textContent = input.ariaLabel = label;
  drawing.ariaLabel = figure.querySelector("img").alt;
  input.max = steps;
  input.value = start;

  const show = () => {
    const width = drawing.clientWidth;
    if (!width) return; // not on the page now, as in print
    const look = kind.look(data, Number(input.value));
    output.textContent = input.ariaValueText = look.value;
    drawing.replaceChildren(kind.draw(data, look, width));
    legend.replaceChildren(
      ...look.legend.map(({ name, color, text }) => {
        const item = document.createElement("li");
        item.style.setProperty("--series", color);
        item.textContent = `${name}: ${text}`;
        return item;
      }),
    );
  };
  input.addEventListener("input", show);
  figure.classList.add("has-slider");
  figure.prepend(place);
  new ResizeObserver(show).observe(drawing);
};

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("script[data-figure]").forEach(mount);
});
