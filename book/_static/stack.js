// On a narrow screen the panels of a figure stand below each other.  They are pieces of the one picture: build.py says
// which.  Without this script the picture is shown.
"use strict";

const LEAST = 500; // pixels of the picture in a line: letters no larger than those of the text
const share = (before, after) => (before + after ? (100 * before) / (before + after) : 0);

document.addEventListener("DOMContentLoaded", () => {
  for (const picture of document.querySelectorAll("article img[data-views]")) {
    const [[width, height], views] = JSON.parse(picture.dataset.views);
    const widest = Math.max(LEAST, ...views.filter(([, top]) => top === 0).map(([wide]) => wide));
    const stack = document.createElement("span");
    stack.className = "panels";
    for (const [wide, top, bottom, pieces] of views) {
      const view = document.createElement("span");
      view.style.aspectRatio = `${wide} / ${bottom - top}`;
      view.style.width = `${Math.min(100, (100 * wide) / widest)}%`;
      for (const [left, right, upper, lower, at] of pieces) {
        const piece = document.createElement("span");
        Object.assign(piece.style, {
          left: `${(100 * at) / wide}%`,
          top: `${(100 * (upper - top)) / (bottom - top)}%`,
          width: `${(100 * (right - left)) / wide}%`,
          height: `${(100 * (lower - upper)) / (bottom - top)}%`,
          backgroundImage: `url("${picture.src}")`,
          backgroundSize: `${(100 * width) / (right - left)}% auto`,
          backgroundPosition: `${share(left, width - right)}% ${share(upper, height - lower)}%`,
        });
        view.append(piece);
      }
      stack.append(view);
    }
    picture.before(stack);
  }
});
