// The verdict on a claim under a protocol; robattr.pages.figures.protocol_explorer says what the table holds.
(() => {
  const explore = (box) => {
    const { claims, names, words } = JSON.parse(box.querySelector(":scope > script").textContent);
    const claim = box.querySelector("select[data-name=claim]");
    const controls = box.querySelector(".explorer-choices");
    const values = box.querySelector(".explorer-values");

    // The place of a protocol in the list of verdicts, whose last choice changes fastest.
    const show = () => {
      const { choices, verdicts, agreements } = claims[claim.selectedIndex];
      let place = 0;
      controls.querySelectorAll("select").forEach((select, i) => {
        place = place * choices[i][1].length + select.selectedIndex;
      });
      const same = [...agreements].filter((a) => a === "s").length / agreements.length;
      values.textContent =
        `Under this protocol: ${names[verdicts[place]]} (${words[agreements[place]]}). ` +
        `As asked: ${names[verdicts[0]]}, as in ${Math.round(100 * same)}% of ${verdicts.length.toLocaleString("en")} protocols.`;
    };

    const choose = () => {
      controls.replaceChildren(
        ...claims[claim.selectedIndex].choices.map(([name, options]) => {
          const label = document.createElement("label");
          label.className = "explorer-control";
          const select = document.createElement("select");
          options.forEach((text) => select.add(new Option(text)));
          select.addEventListener("change", show);
          label.append(name, select);
          return label;
        }),
      );
      show();
    };

    claim.addEventListener("change", choose);
    choose();
  };

  document.querySelectorAll(".protocol-explorer").forEach(explore);
})();
