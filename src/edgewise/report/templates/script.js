"use strict";
// Everything on the page can be read without this script. It turns the titles of marks into a tooltip that also
// comes on keyboard focus and on touch, moves between marks with the arrow keys, and copies the command.
(function () {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);

  let shown = null;

  function show(mark) {
    shown = mark;
    const [x, y] = middle(mark);
    const [first, ...others] = mark.dataset.tip.split("\n");
    const head = document.createElement("b");
    head.textContent = first;
    const lines = others.map((text) => {
      const line = document.createElement("span");
      line.textContent = text;
      return line;
    });
    tip.replaceChildren(head, ...lines);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    const left = Math.min(Math.max(x - box.width / 2, 8), Math.max(width - box.width - 8, 8));
    const above = y - box.height - 16;
    tip.style.left = left + "px";
    tip.style.top = (above > 8 ? above : y + 20) + "px";
  }

  function hide() {
    shown = null;
    tip.hidden = true;
  }

  function middle(mark) {
    const target = mark.querySelector(".hit") || mark;
    const box = target.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + Math.min(box.height / 2, 13)];
  }

  for (const chart of document.querySelectorAll(".chart svg, .stack svg")) {
    const marks = Array.from(chart.querySelectorAll(".mark"));
    marks.forEach((mark, index) => {
      const title = mark.querySelector("title");
      mark.dataset.tip = title.textContent;
      mark.setAttribute("aria-label", title.textContent);
      title.remove(); // else the browser would show a second tooltip
      mark.setAttribute("tabindex", index === 0 ? "0" : "-1");
      mark.addEventListener("pointerenter", () => show(mark));
      mark.addEventListener("pointerleave", hide);
      mark.addEventListener("click", () => show(mark));
      mark.addEventListener("focus", () => show(mark));
      mark.addEventListener("blur", hide);
      mark.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (step === undefined) {
          return;
        }
        event.preventDefault();
        const next = marks[(index + step + marks.length) % marks.length];
        mark.setAttribute("tabindex", "-1");
        next.setAttribute("tabindex", "0");
        next.focus();
      });
    });
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      hide();
    }
  });
  // Focus can scroll a mark into view: then the tooltip follows it. A mark under the pointer has moved away.
  function follow() {
    if (shown !== null && shown === document.activeElement) {
      show(shown);
    } else {
      hide();
    }
  }
  document.addEventListener("scroll", follow, { passive: true });

  const button = document.getElementById("copy");
  const command = document.getElementById("command");
  button.hidden = false;
  button.addEventListener("click", () => {
    const select = () => {
      window.getSelection().selectAllChildren(command);
      button.textContent = "Selected";
    };
    // Pages opened from a file have no clipboard in some browsers; then the text is selected instead.
    if (!navigator.clipboard) {
      select();
      return;
    }
    navigator.clipboard.writeText(command.textContent).then(() => {
      button.textContent = "Copied";
    }, select);
  });
})();
