// Groups that make themselves: asked of the server, else those of the file; shown first, taken or left then.

import { h, percent, replace } from "./dom.js";
import { toast } from "./toast.js";

/** A button that offers groups, and in its place, while some are offered, what they are and the choice; null where there are none. */
export function groupMaker({ graph, store, actions, server }) {
  const fromServer = server?.canPrune === true;
  if (!fromServer && !graph.saved.groups.length) return null;
  const begin = h(
    "button",
    {
      class: "small",
      title: fromServer
        ? "Group the nodes of this graph by what they read and what they promote; nothing changes before you accept it"
        : "The groups that this file came with; nothing changes before you accept them",
      "data-testid": "group-all",
      on: { click: () => offer() },
    },
    fromServer ? "Group all" : "Groups of the file",
  );
  const words = h("span", { class: "quiet", role: "status", "data-testid": "offer" });
  const choice = h(
    "span",
    { class: "offer" },
    words,
    h(
      "button",
      { class: "small primary", "data-testid": "offer-accept", on: { click: () => actions.acceptGroups() } },
      "Accept",
    ),
    h(
      "button",
      { class: "small", "data-testid": "offer-discard", on: { click: () => actions.offerGroups(null) } },
      "Discard",
    ),
  );
  const element = h("span", { class: "maker" });
  const offer = async () => {
    begin.disabled = true;
    try {
      const found = fromServer ? await asked(server) : { ...ofFile(graph), words: null };
      actions.offerGroups(found);
      if (!found) toast("Not grouped: it was cancelled.");
      element.querySelector("[data-testid=offer-accept]")?.focus({ preventScroll: true });
    } catch (error) {
      toast(`Not grouped: ${error.message}`, true);
    }
    begin.disabled = false;
  };
  const update = (state, changed) => {
    if (changed && !changed.has("offer") && !changed.has("groups")) return;
    if (state.offer) replace(words, offerWords(state));
    begin.hidden = !fromServer && sameGroups(state.groups, ofFile(graph).groups);
    const hadFocus = element.contains(document.activeElement);
    replace(element, state.offer ? choice : begin);
    // The choice is made: the keyboard's focus goes on from its place.
    if (hadFocus && !state.offer) (begin.hidden ? element.closest(".panel") : begin)?.focus({ preventScroll: true });
  };
  store.subscribe(update);
  update(store.state);
  return element;
}

/** Those that the file came with, of nodes that it has. */
function ofFile({ saved, byId }) {
  const known = (ids) => [...new Set(ids)].filter((id) => byId.has(id));
  const groups = saved.groups.map(({ name, members }) => ({ name, members: known(members) }));
  return { groups: groups.filter(({ members }) => members.length), pinned: known(saved.pinned) };
}

const sameGroups = (some, others) => JSON.stringify(some) === JSON.stringify(others);

/** {groups, pinned, words} of a server; null if somebody cancelled the job. */
async function asked({ client, slug }) {
  const found = await client.group(slug).result();
  if (!found) return null;
  const { supernodes, pinned, purity } = found;
  const groups = supernodes.map(([name, ...members]) => ({ name, members }));
  return { groups, pinned, words: `${percent(purity)} pure` };
}

function offerWords({ offer, groups }) {
  const nodes = offer.groups.reduce((sum, { members }) => sum + members.length, 0);
  const instead = groups.length ? `, instead of ${groups.length}` : "";
  const found = `Preview: ${offer.groups.length} groups of ${nodes} nodes${instead}`;
  return offer.words ? `${found}; ${offer.words}` : found;
}
