// On paper nothing can be opened: proofs are.
{
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details.proof-folded:not([open])")];
    folded.forEach((proof) => (proof.open = true));
  });
  addEventListener("afterprint", () => folded.forEach((proof) => (proof.open = false)));
}
