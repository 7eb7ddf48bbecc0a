// A figure enlarges on a click, or on Enter where it has the focus.  Escape, another click or the button closes it.
// Without this script a figure is a picture as any other.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  dialog.ariaLabel = "Enlarged figure";
  dialog.innerHTML = '<button type="button" aria-label="Close" autofocus>×</button>';
  dialog.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.querySelector("img").remove());
  document.body.append(dialog);

  for (const picture of document.querySelectorAll("article figure img")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "enlarge";
    button.ariaHasPopup = "dialog";
    picture.replaceWith(button);
    button.append(picture);
    button.addEventListener("click", () => {
      dialog.append(picture.cloneNode());
      dialog.showModal();
    });
  }
});
