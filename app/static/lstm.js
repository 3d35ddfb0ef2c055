// lstm.html: the four steps with the numbers in the address, or with those of the sample picture.
import { caption } from "./api.js";
import { laidOut } from "./dom.js";
import { unpack, walkthrough } from "./walkthrough.js";

const root = document.getElementById("walk");

async function start() {
  let tokens = unpack(location.hash.slice(1));
  if (!tokens) {
    try {
      const sample = await (await fetch(new URL("sample.jpg", import.meta.url))).blob();
      const said = (await caption(sample, { explain: true })).captions[0];
      tokens = laidOut(said.text, said.tokens);
      document.getElementById("whose").textContent = "These are the numbers of the sample picture’s caption; open any other picture’s from the page.";
    } catch (error) {
      root.textContent = `There are no numbers to show: ${error.message}`;
      return;
    }
  }
  walkthrough(root, tokens);
}

addEventListener("hashchange", start);
await start();
