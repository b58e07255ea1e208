// The page's panels, a row each, in the order of tabs. A panel is one module that exports `panel`:
//
//   id, title      what its tab is called; `#panel-id` and [data-testid=id] are its element
//   area           where it stands: one of AREAS in areas.js, under a tab if others stand there too
//   mount(root, page)  fills its element; returns {update, focus}, both optional, or nothing.
//                  page: {graph, store, actions, view, subgraph, server, explain, source, open(panel id)}
//     update(state, changed)  at the start, and when one of the fields `on` changed; changed: a Set of names
//     focus()      what to go to with the key of its area, if not the area itself
//   on             names of fields of the state
// and, where it needs them,
//   fields         fields that it adds to the state: {name: {initial(graph), address, read}}. Those with an address are kept in
//                  the page's address under that name, unless they are as at the start; read(text or null, initial, params)
//                  makes a value of the text there, which without `read` is taken as it is
//   keys           keys that work everywhere on the page: [{keys, does, act: {key: (page) => ...}}]; keys and does are for the
//                  list of keys
//   available(page)  whether this page has it, if not always
//   stays          true: selecting a node leaves its tab open, where others give way to Connections; "inside": selecting it there
//   first(page)    whether the page opens on it: its tab is in front, and a page of one area at a time shows its area
//   short          what a narrow screen calls its area, where it stands first in it
//   shows          a field of the state: its tab opens when that changes to another value than null

import { panel as circuit } from "./circuit_panel.js";
import { panel as connections } from "./connections_panel.js";
import { panel as edge } from "./edge_panel.js";
import { panel as feature } from "./feature_panel.js";
import { panel as graph } from "./graph_panel.js";
import { panel as head } from "./head_panel.js";
import { panel as nodes } from "./nodes_panel.js";
import { panel as paths } from "./paths_panel.js";
import { panel as story } from "./story_panel.js";
import { panel as test } from "./test_panel.js";

export const PANELS = [graph, circuit, story, connections, edge, head, nodes, paths, test, feature];
