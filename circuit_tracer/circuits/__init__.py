"""From a graph to an explanation: groups of its nodes, their circuit, their names and a story."""
